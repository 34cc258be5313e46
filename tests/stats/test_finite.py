"""Numbers that are not finite stop a run by name; collapsed policies have no win rate; memory lowers micro-batches."""

import json
from dataclasses import replace

import pytest
import torch
from factory_training import DPO, HINGE, SETTINGS, data_of, distance, pairs_of, weights_of

from stagealign.base.errors import BadNumbers, CannotRun
from stagealign.data.records import Candidate, prompt_hash
from stagealign.evaluate import scores as evaluate
from stagealign.grid.spec import Decoding
from stagealign.oracle.learned import LearnedOracle
from stagealign.scoring.contest import Contest
from stagealign.stats.finite import COLLAPSED_KL, check_finite, collapsed, prompts_named, stop_unless_finite
from stagealign.train import packed_forward
from stagealign.train import trainer as train
from stagealign.train.batches import BatchOrder
from stagealign.train.round import within_memory
from stagealign.train.trainer import align


def named(data, pairs):
    return replace(data, prompts=[prompt_hash(pair.prompt) for pair in pairs])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [DPO, HINGE], ids=["dpo", "hinge"])
def test_a_loss_or_margin_that_is_not_finite_names_step_and_prompt(method, bad, tiny, tmp_path):
    """For the hinge an infinite margin is a loss of 0: only the margin tells."""
    pairs = pairs_of(12)
    data = named(data_of(tiny(), pairs), pairs)
    place = list(BatchOrder(data.tokens, 4, SETTINGS.order_seed))[9]  # in the third batch of four
    data = replace(data, reference=data.reference.clone())
    data.reference[place, 0] = bad
    with pytest.raises(BadNumbers, match=r"step 3: the (loss|margin) is not finite") as caught:
        align(tiny(), data, method, SETTINGS, tmp_path)
    assert f"prompt {prompt_hash(pairs[place].prompt)};" in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_keeps_the_last_checkpoint(
    tiny, tmp_path, monkeypatch
):
    pairs, lm, seen = pairs_of(12), tiny(), {}
    data = named(data_of(lm, pairs), pairs)
    norm = train.Trainer._get_grad_norm

    def poisoned(self, model, grad_norm=None):
        if self.state.global_step == 2:
            seen.update(weights_of(lm))
            return float("nan")
        return norm(self, model, grad_norm=grad_norm)

    monkeypatch.setattr(train.Trainer, "_get_grad_norm", poisoned)
    with pytest.raises(BadNumbers, match=r"step 3: the gradient is not finite") as caught:
        align(lm, data, DPO, replace(SETTINGS, checkpoint_steps=1), tmp_path)
    order = list(BatchOrder(data.tokens, 4, SETTINGS.order_seed))[8:12]
    for place in order:
        assert data.prompts[place] in str(caught.value)
    assert "checkpoint-2" in str(caught.value)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert distance(weights_of(lm), seen) == 0
    monkeypatch.setattr(train.Trainer, "_get_grad_norm", norm)
    assert [entry["step"] for entry in align(tiny(), data, DPO, replace(SETTINGS, checkpoint_steps=1), tmp_path)] == [
        1, 2, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_lowers_the_micro_batch_and_no_number(error, tiny, tmp_path, monkeypatch):
    pairs = pairs_of(12)
    expected = align(tiny(), data_of(tiny(), pairs), DPO, SETTINGS, tmp_path / "calm")
    hidden, sizes = packed_forward.scored_states, []

    def short_of_memory(body, packed, trunk=None):
        sizes.append(len(packed.lengths) // 2)
        if sizes[-1] > 1 and len(sizes) > 4:  # after a step or so: weights have moved already
            raise error
        return hidden(body, packed, trunk)

    data = data_of(tiny(), pairs)
    monkeypatch.setattr(packed_forward, "scored_states", short_of_memory)
    settings = replace(SETTINGS, micro_batch=2)
    lm, curve, micro = within_memory(tiny(), tiny, data, DPO, settings, tmp_path / "short")
    assert micro == 1
    assert [entry["loss"] for entry in curve] == pytest.approx([entry["loss"] for entry in expected], abs=1e-5)
    monkeypatch.setattr(packed_forward, "scored_states", hidden)
    calm = tiny()
    align(calm, data, DPO, SETTINGS, tmp_path / "again")
    assert distance(weights_of(lm), weights_of(calm)) < 1e-4


def test_one_pair_that_does_not_fit_is_a_clear_error_and_other_faults_come_through(tiny, tmp_path, monkeypatch):
    def always(*_):
        raise torch.OutOfMemoryError("no")

    data = data_of(tiny(), pairs_of(4))
    monkeypatch.setattr(packed_forward, "scored_states", always)
    with pytest.raises(CannotRun, match="one pair at a time"):
        within_memory(tiny(), tiny, data, DPO, SETTINGS, tmp_path)

    def fault(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(packed_forward, "scored_states", fault)
    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(tiny(), tiny, data, DPO, SETTINGS, tmp_path)


def test_the_oracle_and_the_sampler_stop_by_prompt(tiny):
    from stagealign.data.records import Prompt
    from stagealign.policy.sample import sample

    bad = LearnedOracle("bad", lambda texts: [1.0, float("nan")])
    with pytest.raises(BadNumbers, match=f"oracle 'bad': not finite for prompt {prompt_hash('q')}"):
        list(bad.judge([Contest("p", ("a",), ()), Contest("q", (), ("b",))]))
    lm = tiny()
    with torch.no_grad():
        lm.head.weight.fill_(float("nan"))
    with pytest.raises(BadNumbers, match=f"not finite for prompt {prompt_hash('Say it.')}"):
        sample(lm, [Prompt("Say it.", "test")], Decoding(max_new_tokens=3), 2, 0)


def test_a_logged_number_that_is_not_finite_stops_other_trainers():
    class State:
        global_step = 7

    stop = stop_unless_finite("fine-tuning")
    stop.on_log(None, State, None, {"loss": 1.5, "epoch": 1})
    with pytest.raises(BadNumbers, match="fine-tuning, step 7: grad_norm is not finite"):
        stop.on_log(None, State, None, {"loss": 1.5, "grad_norm": float("inf")})


def test_names_of_prompts():
    assert prompts_named(["a"]) == "prompt a"
    assert prompts_named(["a", "b"]) == "prompts a, b"
    assert prompts_named(list("abcdefg")) == "7 prompts, such as a, b, c, d, e"
    check_finite([1.0, 2.0], ["a", "b"], "x", "y")
    with pytest.raises(BadNumbers, match="x: not finite for prompt b; y"):
        check_finite([1.0, float("nan"), float("inf")], ["a", "b", "b"], "x", "y")


@pytest.mark.parametrize(
    ("texts", "kl", "tokens", "says"),
    [
        (["", " "], 1.0, 0.0, "empty"),
        (["the the"] * 4, 1.0, 2.0, "equal"),
        (["one", "two"], COLLAPSED_KL * 20 + 1, 20.0, "nats a token"),
        (["one", "two"], COLLAPSED_KL * 20, 20.0, None),
        (["one", "one", "two"], None, 1.0, None),
        (["alone"], None, 1.0, None),
    ],
)
def test_what_counts_as_collapsed(texts, kl, tokens, says):
    found = collapsed(texts, kl, tokens)
    assert (says in found) if says else found is None


def test_a_collapsed_policy_is_reported_as_that_and_not_as_a_win_rate(tmp_path):
    from factory_results import fill, result

    from stagealign.report import build as report
    from stagealign.report.sections.words import score
    from stagealign.store.results import write_result

    texts = [Candidate(f"prompt {i}", "the the", "on", j, tokens=2) for i in range(4) for j in range(2)]
    votes = [{"on": 4, "off": 0, "ties": 0, "top_on": 1, "top_off": 0} for _ in range(4)]
    readings = {f"prompt {i}": evaluate.against(texts[:2], [3.0, 3.0], [0.0, 1.0], -1.0, 0.2) for i in range(4)}
    found = evaluate.policy_metrics(evaluate.Evaluated(texts, readings, votes, {}, 0.2, "rating points"))
    assert found["collapsed"] == "all completions are equal"
    assert (found["win_rate"]["value"], found["win_rate"]["interval"]) == (None, None)
    assert score(found["win_rate"]) == "no value: collapsed: all completions are equal"
    varied = [replace(one, completion=f"text {i}") for i, one in enumerate(texts)]
    assert "collapsed" not in evaluate.policy_metrics(
        evaluate.Evaluated(varied, readings, votes, {}, 0.2, "rating points")
    )
    fill(tmp_path / "results", seeds=1)
    made = json.loads(json.dumps(result("zephyr-dpo-1off")))
    metrics = made["rounds"][0]["rungs"][0]["metrics"]["test"]
    metrics |= {"collapsed": found["collapsed"], "win_rate": {**metrics["win_rate"], **_no_value(found)}}
    write_result(tmp_path / "results", made)
    pages = report.build(tmp_path / "results", "lab")
    assert "Collapsed, so without a win rate: Zephyr stand-in, DPO, after off" in pages["lab/README.md"]
    assert "all completions are equal" in pages["lab/index.html"]


def _no_value(found):
    return {key: found["win_rate"][key] for key in ("value", "standard_error", "interval", "reason")}
