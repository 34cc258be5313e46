"""Samples by vLLM: what it is asked and how its answers are read, by a stand-in with its signatures and, where named,
by a real one: `STAGEALIGN_VLLM_PYTHON=/path/to/python pytest tests/policy/test_vllm.py`.
"""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace

import pytest
import torch
from factory_vllm import DECODING, ENDS, PROMPTS

from stagealign.base.errors import BadData, BadNumbers, CannotRun, StagealignError
from stagealign.base.identity import plain, stream
from stagealign.data.records import Candidate, Prompt, read_rows, write_rows
from stagealign.grid import registry, variants
from stagealign.grid.spec import Decoding, Engine
from stagealign.pipeline.rounds import plan_run
from stagealign.policy import lm, vllm_sample, vllm_worker
from stagealign.policy.context import FILLED
from stagealign.policy.sample import sample


def rows_of(work):
    return read_rows(work.out / "candidates.jsonl", Candidate)


def test_candidates_are_as_our_own_sampler_gives_them(fake, work):
    """By hand: a completion's seed is its prompt's plus its index, and the stand-in's text follows from the seed."""
    one = work()
    facts = vllm_sample.build(one)
    shape = lm.load_shape(one.inputs["policy"])
    assert lm.end_ids(shape) == ENDS
    found = rows_of(one)
    assert [(c.prompt, c.index, c.source) for c in found] == [(p.text, j, "on") for p in PROMPTS for j in range(3)]
    for candidate, prompt in zip(found, [p for p in PROMPTS for _ in range(3)], strict=True):
        chance = (stream(5, "sample", prompt.hash) >> 1) + candidate.index
        length = chance % 13
        assert candidate.token_ids == tuple(1 + (chance + k) % 10 for k in range(length))
        assert candidate.truncated == (length == 12)
        assert candidate.tokens == length + (not candidate.truncated)
        assert candidate.logp == -0.5 * (length + 1)
        text = shape.tokenizer.decode(list(candidate.token_ids), skip_special_tokens=True)
        assert candidate.completion == text.strip()
    assert {c.truncated for c in found} == {True, False}, "the stand-in shows both ends"
    assert facts == {
        "candidates": 15,
        "tokens": sum(c.tokens for c in found),
        "truncated": sum(c.truncated for c in found),
        "empty": sum(not c.completion for c in found),
        "capped": 0,
        "drops": {},
        "dropped": {},
        "kept": 0,
    }


def test_processes_share_the_prompts_and_give_the_same(fake, work):
    one, two, many = work("one"), work("two", processes=2), work("many", processes=9)
    for each in (one, two, many):
        vllm_sample.build(each)
    assert rows_of(one) == rows_of(two) == rows_of(many)
    jobs = [json.loads((two.out / f"scratch/vllm/work-{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(len(job["rows"]) for job in jobs) == [2, 3]
    assert {row["key"] for job in jobs for row in job["rows"]} == {prompt.hash for prompt in PROMPTS}


def test_a_gpu_a_process(monkeypatch):
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert vllm_sample._gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert vllm_sample._gpus() == ["3", "5"]


def test_work_is_dealt_out_by_length():
    rows = [{"key": str(i), "ids": [0] * i} for i in (5, 1, 4, 2, 3)]
    dealt = [[len(row["ids"]) for row in part] for part in vllm_sample.shares(rows, 2)]
    assert dealt == [[5, 3, 1], [4, 2]]
    assert len(vllm_sample.shares(rows, 9)) == 5


def test_what_a_dead_process_answered_is_not_asked_again(fake, work, monkeypatch):
    one, whole = work(), work("whole")
    monkeypatch.setenv("FAKE_DIES", "2")
    with pytest.raises(
        StagealignError, match=r"vLLM: ended with 1; its answers so far are kept(.|\n)*out of memory, says"
    ):
        vllm_sample.build(one)
    answers = one.out / "scratch" / "vllm" / "answers-0.jsonl"
    assert len(answers.read_text().splitlines()) == 2
    answers.write_text(answers.read_text() + '{"key": "ab", "outp')  # half a line, as a kill leaves it
    monkeypatch.delenv("FAKE_DIES")
    assert vllm_sample.build(one)["kept"] == 2
    asked = json.loads((one.out / "scratch/vllm/work-0.json").read_text())["rows"]
    assert len(asked) == 3
    vllm_sample.build(whole)
    assert rows_of(one) == rows_of(whole)


def test_vllm_is_told_the_whole_decoding():
    """A field that is added to the decoding must reach vLLM too."""
    decoding = Decoding(0.7, 0.9, 40, 64, presence_penalty=0.1, frequency_penalty=0.2)
    told = vllm_sample.wishes(decoding, 2, [7])
    names = {"max_new_tokens": "max_tokens"}
    assert {name: told[names.get(name, name)] for name in asdict(decoding)} == asdict(decoding)


def test_greedy_completions_are_one_and_the_same(fake, work):
    one = work(decoding=replace(DECODING, temperature=0.0))
    vllm_sample.build(one)
    found = rows_of(one)
    assert [c.index for c in found[:3]] == [0, 1, 2]
    assert len({c.token_ids for c in found[:3]}) == 1


def test_new_tokens_are_capped_by_the_context_prompt_by_prompt(fake, work):
    """The stand-in refuses more than its length; a completion that reaches its own cap is cut."""
    one = work(decoding=replace(DECODING, max_new_tokens=500))
    facts = vllm_sample.build(one)
    assert facts["capped"] == len(PROMPTS)
    shape = lm.load_shape(one.inputs["policy"])
    job = json.loads((one.out / "scratch/vllm/work-0.json").read_text())
    assert job["llm"]["max_model_len"] == 512
    assert {row["key"]: row["most"] for row in job["rows"]} == {
        prompt.hash: 512 - len(shape.prompt_ids(prompt.text)) for prompt in PROMPTS
    }
    assert all(len(c.token_ids) <= 512 - len(shape.prompt_ids(c.prompt)) for c in rows_of(one))


def test_a_prompt_that_fills_the_context_is_a_counted_drop(fake, work):
    one, long = work(), Prompt("word " * 120, "train")
    write_rows(one.inputs["prompts"] / "prompts.jsonl", [long, *PROMPTS])
    facts = vllm_sample.build(one)
    assert facts["drops"] == {FILLED: 1}
    assert list(facts["dropped"]) == [long.hash]
    assert [c.prompt for c in rows_of(one)] == [p.text for p in PROMPTS for _ in range(3)]


def test_nothing_but_long_prompts_is_refused_before_vllm_starts(fake, work):
    one = work()
    write_rows(one.inputs["prompts"] / "prompts.jsonl", [Prompt("word " * 120, "train")])
    with pytest.raises(BadData, match=r"each of 1 prompts fills the policy's context of 512 tokens"):
        vllm_sample.build(one)
    assert not (one.out / "scratch").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"finish": "abort"}, StagealignError, "ended a completion with 'abort'"),
        ({"logp": float("nan")}, BadNumbers, "not finite for prompt"),
        ({"logp": None}, BadNumbers, "not finite for prompt"),
    ],
)
def test_what_is_no_completion_is_refused(change, error, words):
    good = {"ids": [1, 0], "finish": "stop", "logp": -1.0}
    with pytest.raises(error, match=words):
        list(vllm_sample.read(PROMPTS[0], [good, good | change], 2, ENDS, lambda ids, **_: ""))
    with pytest.raises(StagealignError, match="2 completions of 3"):
        list(vllm_sample.read(PROMPTS[0], [good, good], 3, ENDS, lambda ids, **_: ""))


def test_an_answer_to_other_token_ids_is_no_answer():
    output = type("RequestOutput", (), {"prompt_token_ids": [1, 2], "outputs": []})
    with pytest.raises(ValueError, match="read other token ids"):
        vllm_worker.answer({"key": "k", "ids": [1, 3]}, output)


def test_version_and_settings_are_identity(fake, monkeypatch):
    engine = vllm_sample.engine()
    assert (engine.key, engine.version) == ("vllm", "0.30.0")
    assert engine.settings == vllm_sample.SETTINGS
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert vllm_sample.engine().settings == {**vllm_sample.SETTINGS, "batch_invariant": True}
    ours = plan_run(registry.cell("zephyr-dpo-2off_on"), 0).artifacts
    (cell,) = variants.sampled_by([registry.cell("zephyr-dpo-2off_on")], engine)
    assert cell.id == "zephyr-dpo_vllm-2off_on"
    theirs = plan_run(cell, 0).artifacts
    sampled = [a for a in theirs.values() if "engine" in a.params]
    assert {a.path.rpartition("/")[2] for a in sampled} == {"candidates", "completions"}
    assert all(a.kind.name == "stagealign.vllm_sample:build" for a in sampled)
    assert not {a.path for a in sampled} & set(ours), "what two engines sampled never stands at one path"
    shared = set(ours) & set(theirs)
    assert all(ours[path].fingerprint == theirs[path].fingerprint for path in shared)
    assert any("/1off/" in path and path.endswith("/policy") for path in shared), "off-policy rounds are the same ones"
    (other,) = variants.sampled_by([registry.cell("zephyr-dpo-2off_on")], replace(engine, version="0.31.0"))
    again = plan_run(other, 0).artifacts
    assert all(again[a.path].fingerprint != a.fingerprint for a in sampled)


def test_another_version_than_planned_is_refused(fake, work):
    one = work()
    one.params["engine"]["version"] = "0.29.0"
    with pytest.raises(CannotRun, match=r"vLLM 0\.30\.0 is here, planned was 0\.29\.0"):
        vllm_sample.build(one)


def test_what_is_absent_is_named_before_work(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 0)
    with pytest.raises(CannotRun, match="no GPU was found"):
        vllm_sample.engine()
    monkeypatch.setattr(vllm_sample, "_installed", lambda: {"name": "vllm", "version": "0.40.1"})
    with pytest.raises(CannotRun, match=r"vLLM 0\.40\.1 is installed; versions 0\.22 to 0\.33 are known"):
        vllm_sample.engine()
    monkeypatch.undo()
    monkeypatch.setenv(vllm_sample.PYTHON, str(tmp_path / "none"))
    with pytest.raises(CannotRun, match=r"STAGEALIGN_VLLM_PYTHON.*cannot be run"):
        vllm_sample.engine()
    monkeypatch.setenv(vllm_sample.PYTHON, sys.executable)
    if vllm_worker.installed() is None:  # as in CI
        with pytest.raises(CannotRun, match=r"vLLM is not installed; `pip install 'stagealign\[vllm\]'`"):
            vllm_sample.engine()


def test_the_worker_needs_nothing_of_this_package():
    source = inspect.getsource(vllm_worker)
    assert "stagealign" not in source
    code = f"import runpy; runpy.run_path({vllm_worker.__file__!r})"
    subprocess.run([sys.executable, "-S", "-I", "-c", code], check=True)  # no package of this environment either


REAL = textwrap.dedent("""
    import inspect, json, vllm
    print(json.dumps([list(inspect.signature(vllm.LLM.__init__).parameters),
                      list(inspect.signature(vllm.SamplingParams).parameters)]))
""")


@pytest.mark.slow
def test_a_real_vllm(work, tiny, tmp_path, monkeypatch):
    """Greedy it writes what our sampler writes, with its log-probs; sampled, its log-probs are those of its tokens."""
    python = os.environ.get(vllm_sample.PYTHON)
    if not python:
        pytest.skip(f"{vllm_sample.PYTHON} names no Python with vLLM")
    monkeypatch.setattr(vllm_sample, "SETTINGS", {**vllm_sample.SETTINGS, "enforce_eager": True})
    done = subprocess.run([python, "-c", REAL], capture_output=True, text=True, check=True)
    engine, wishes = json.loads(done.stdout.splitlines()[-1])
    assert set(vllm_sample.wishes(DECODING, 2, [0])) | {"seed"} <= set(wishes)
    assert {"model", "dtype", "seed", "skip_tokenizer_init", "kwargs"} <= set(engine)
    greedy, sampled = work("greedy", decoding=replace(DECODING, temperature=0.0)), work("sampled", processes=2)
    vllm_sample.build(greedy)
    model = lm.load(greedy.inputs["policy"])
    ours = sample(model, PROMPTS, replace(DECODING, temperature=0.0), 3, seed=5)
    for found, expected in zip(rows_of(greedy), ours, strict=True):
        assert found == replace(expected, logp=found.logp)
        assert found.logp == pytest.approx(expected.logp, abs=5e-3)
    vllm_sample.build(sampled)
    rows = rows_of(sampled)
    assert {c.truncated for c in rows} == {True, False}
    assert len({c.token_ids for c in rows}) > len(PROMPTS), "candidates of a prompt are draws of their own"
    check_logps(model, rows)


def check_logps(model, rows):
    for one in rows:
        prompt = model.prompt_ids(one.prompt)
        assert not set(one.token_ids) & set(ENDS)
        with torch.no_grad():
            logps = model.model(torch.tensor([[*prompt, *one.token_ids]])).logits[0].log_softmax(-1)
        scored = sum(float(logps[len(prompt) - 1 + k, token]) for k, token in enumerate(one.token_ids))
        ends = [scored] if one.truncated else [scored + float(logps[-1, end]) for end in ENDS]
        assert any(one.logp == pytest.approx(end, abs=5e-3) for end in ends), "the end token's log-prob is counted"


def test_the_engine_is_plain_values():
    assert plain(Engine("vllm", "1", {"a": True})) == {"key": "vllm", "version": "1", "settings": {"a": True}}
