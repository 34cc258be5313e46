"""The engine: equal to TRL's trainer, the same curve in any micro-batch, from any cache and after any interruption."""

import math
import os
import re
from dataclasses import replace

import pytest
import torch
from factory_training import DPO, HINGE, SETTINGS, data_of, distance, pairs_of, weights_of

from stagealign.base.errors import BadData, StagealignError
from stagealign.policy.layers import FROZEN, TRAINED
from stagealign.policy.lm import load, save
from stagealign.policy.logps import PairTokens
from stagealign.train import trainer as train
from stagealign.train.batches import BatchOrder
from stagealign.train.reference import TrainingSet, reference_logps, tokenize, trunk_states
from stagealign.train.trainer import align


def without_key_bias(weights):
    """Weights less GPT-NeoX's key biases. Where no rotation is applied they cancel in the softmax: their gradient is
    rounding alone, which AdamW scales up to whole steps, and the model does not depend on them.
    """
    parts = {
        name: weight.view(4, 3, 16)[:, [0, 2]] for name, weight in weights.items() if "query_key_value.bias" in name
    }
    return weights | parts


def trained(lm, folder, pairs=None, method=DPO, settings=SETTINGS, data=None):
    """Curve and weights of one run."""
    data = data or data_of(lm, pairs or pairs_of(16))
    curve = align(lm, data, method, settings, folder)
    return curve, weights_of(lm)


def test_micro_batches_give_the_same_curve_and_weights(tiny, tmp_path):
    """22 pairs in batches of 8: the last global batch has 6, so that no micro-batch of 4 fills it."""
    runs = {}
    for micro in (1, 2, 4, 8):
        settings = replace(SETTINGS, batch=8, epochs=2, warmup=0.0, micro_batch=micro)
        runs[micro] = trained(tiny(), tmp_path / str(micro), pairs_of(22), settings=settings)
    curve, weights = runs[8]
    assert [entry["step"] for entry in curve] == [1, 2, 3, 4, 5, 6]
    for micro in (1, 2, 4):
        for entry, expected in zip(runs[micro][0], curve, strict=True):
            assert entry["loss"] == pytest.approx(expected["loss"], abs=1e-5)
            assert entry["margin"] == pytest.approx(expected["margin"], abs=1e-4)
            assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
            assert entry["learning_rate"] == expected["learning_rate"]
            if entry["step"] > 1:  # at the start margins are 0 up to rounding, and their signs are chance
                assert entry["accuracy"] == expected["accuracy"]
        assert distance(runs[micro][1], weights) < 1e-4
    assert distance(weights_of(tiny()), weights) > 1e-3


def test_other_threads_give_the_same_curve_and_weights_within_rounding(tiny, tmp_path):
    pairs = [replace(pair, chosen=pair.chosen * 12, rejected=pair.rejected * 9) for pair in pairs_of(16)]
    runs = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs[threads] = trained(tiny(), tmp_path / str(threads), pairs, settings=replace(SETTINGS, epochs=2))
    finally:
        torch.set_num_threads(1)
    for entry, expected in zip(runs[2][0], runs[1][0], strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert entry["margin"] == pytest.approx(expected["margin"], abs=1e-4)
    assert distance(runs[2][1], runs[1][1]) < 1e-4
    assert distance(weights_of(tiny()), runs[1][1]) > 1e-3


def test_a_smaller_last_batch_is_weighted_as_its_own_mean(tiny, tmp_path):
    """5 pairs in batches of 4: step 2 moves the weights by the gradient of its one pair alone."""
    settings = replace(SETTINGS, warmup=0.0, max_grad_norm=1e9)
    data = data_of(tiny(), pairs_of(5))
    order = list(BatchOrder(data.tokens, 4, SETTINGS.order_seed))
    curve, _ = trained(tiny(), tmp_path / "five", settings=replace(settings, learning_rate=1e-9), data=data)
    last = [data.tokens[order[4]]]
    alone = TrainingSet(last, data.reference[order[4:]])
    expected, _ = trained(tiny(), tmp_path / "one", settings=replace(settings, learning_rate=1e-9), data=alone)
    assert curve[1]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-4)
    assert curve[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(("method", "start"), [(DPO, math.log(2)), (HINGE, 1.0)], ids=["dpo", "hinge"])
def test_loss_starts_where_policy_is_reference(method, start, tiny, tmp_path):
    curve, _ = trained(tiny(), tmp_path, method=method)
    assert curve[0]["loss"] == pytest.approx(start, abs=1e-5)
    assert curve[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert curve[-1]["loss"] < start
    assert set(curve[0]) == {"step", "loss", "margin", "accuracy", "kl", "grad_norm", "learning_rate"}


@pytest.mark.parametrize(("form", "method"), [("sigmoid", DPO), ("hinge", HINGE)])
def test_weights_equal_trl_after_20_steps(form, method, tiny, trl_dpo, tmp_path):
    """The same 40 pairs in the same order, two epochs of 10 batches of 4: losses to 1e-5, weights to 1e-4."""
    pairs, ours, theirs = pairs_of(40), tiny(), tiny()
    settings = replace(SETTINGS, epochs=2, learning_rate=5e-4)
    data = data_of(ours, pairs)
    order = BatchOrder(data.tokens, 4, settings.order_seed)
    trainer = trl_dpo(
        theirs,
        pairs,
        order=order,
        loss_type=[form],
        beta=method.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        num_train_epochs=2,
        per_device_train_batch_size=4,
    )
    rows = list(trainer.train_dataset)
    for row, tokens in zip(rows, data.tokens, strict=True):
        assert tuple(row["prompt_ids"]) == tokens.prompt
        assert (tuple(row["chosen_ids"]), tuple(row["rejected_ids"])) == (tokens.chosen, tokens.rejected)
    trainer.train()
    curve, weights = trained(ours, tmp_path / "ours", method=method, settings=settings, data=data)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in curve] == pytest.approx(losses, abs=2e-5)
    assert len(curve) == 20
    assert distance(weights, weights_of(theirs)) < 1e-4
    assert distance(weights, weights_of(tiny())) > 2e-3


def test_optimizer_is_trls(tiny, trl_dpo, tmp_path, monkeypatch):
    """AdamW with the same constants; both take transformers' defaults, which may change under either."""
    ours = {}
    monkeypatch.setattr(train.PreferenceTrainer, "train", lambda self, **_: ours.update(args=self.args))
    align(tiny(), data_of(tiny(), pairs_of(4)), DPO, SETTINGS, tmp_path / "ours")
    theirs = trl_dpo(tiny(), pairs_of(4)).args
    for name in ("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"):
        assert getattr(ours["args"], name) == getattr(theirs, name), name


@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_cached_trunk_equals_training_the_same_layers_through_the_whole(shape, tiny, tmp_path):
    settings = replace(SETTINGS, trained_layers=2, epochs=2)
    whole, cached = tiny(shape), tiny(shape)
    before = weights_of(whole)
    plain = data_of(whole, pairs_of(16))
    expected, there = trained(whole, tmp_path / "whole", settings=settings, data=plain)
    curve, here = trained(cached, tmp_path / "cached", settings=settings, data=data_of(cached, pairs_of(16), 2))
    assert [entry["loss"] for entry in curve] == pytest.approx([entry["loss"] for entry in expected], abs=1e-5)
    assert distance(without_key_bias(here), without_key_bias(there)) < 1e-4
    moved = {name for name in before if not torch.equal(before[name], here[name])}
    top = (".layers.2.", ".layers.3.", "model.norm.", ".final_layer_norm.")
    assert moved == {name for name in before if any(part in name for part in top)}
    assert moved == {name for name in before if not torch.equal(before[name], there[name])}


@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_reference_logps_with_and_without_trunk(shape, tiny):
    lm = tiny(shape)
    tokens = tokenize(lm, pairs_of(10), 512)
    plain = reference_logps(lm, tokens, None, None)
    assert plain.shape == (10, 2)
    assert torch.allclose(reference_logps(lm, tokens, trunk_states(lm, tokens, 2), 2), plain, rtol=1e-5, atol=1e-4)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("trained_layers", [None, 2], ids=["whole", "trunk"])
@pytest.mark.parametrize("stop", [7, 12], ids=["first epoch", "second epoch"])
def test_resume_gives_the_same_weights_bit_for_bit(stop, trained_layers, tiny, tmp_path, monkeypatch):
    """16 steps in two epochs, a checkpoint every 5, stopped after step `stop`; a new policy object runs the rest."""
    settings = replace(SETTINGS, batch=2, micro_batch=1, epochs=2, checkpoint_steps=5, trained_layers=trained_layers)
    pairs, steps = pairs_of(16), []
    expected, weights = trained(
        tiny(), tmp_path / "one", settings=settings, data=data_of(tiny(), pairs, trained_layers)
    )
    note = train.PreferenceTrainer._note

    def interrupt(self, logps, losses):
        steps.append(self.state.global_step + 1)
        if steps[-1] > stop and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise Interrupted
        note(self, logps, losses)

    monkeypatch.setattr(train.PreferenceTrainer, "_note", interrupt)
    with pytest.raises(Interrupted):
        trained(tiny(), tmp_path / "two", settings=settings, data=data_of(tiny(), pairs, trained_layers))
    steps.clear()
    curve, resumed = trained(tiny(), tmp_path / "two", settings=settings, data=data_of(tiny(), pairs, trained_layers))
    assert min(steps) == 5 * (stop // 5) + 1
    assert distance(resumed, weights) == 0
    assert curve == expected


def test_two_runs_are_bit_identical(tiny, tmp_path):
    one, other = (trained(tiny(), tmp_path / name) for name in ("one", "other"))
    assert one[0] == other[0]
    assert distance(one[1], other[1]) == 0


def test_order_is_seeded_and_new_in_each_epoch():
    tokens = [PairTokens((1,) * (1 + i % 7), (2,), (3,)) for i in range(22)]
    order = BatchOrder(tokens, 8, seed=3)
    first = list(order)
    order.set_epoch(1)
    assert sorted(first) == sorted(order) == list(range(22))
    assert list(order) != first == list(BatchOrder(tokens, 8, seed=3)) != list(BatchOrder(tokens, 8, seed=4))
    for start in (0, 8, 16):
        lengths = [tokens[i].tokens for i in first[start : start + 8]]
        assert lengths == sorted(lengths, reverse=True)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tiny, tmp_path):
    data = data_of(tiny(), pairs_of(12))
    bad = list(BatchOrder(data.tokens, 4, SETTINGS.order_seed))[9]  # in the third batch of four
    data = replace(data, reference=data.reference.clone())
    data.reference[bad, 0] = float("nan")
    with pytest.raises(StagealignError, match=r"step 3: the loss is not finite; lower the learning rate \(0.001\)"):
        trained(tiny(), tmp_path, data=data)


def test_a_micro_batch_that_does_not_divide_is_refused(tiny, tmp_path):
    with pytest.raises(StagealignError, match="micro-batch 3: must divide the global batch of 4"):
        trained(tiny(), tmp_path, settings=replace(SETTINGS, micro_batch=3))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_top_layers_load_as_the_same_model(tied, tiny, tmp_path):
    """Of a policy whose top layers alone were trained, the frozen shard is a hard link to the start's."""
    start, folder = tmp_path / "start", tmp_path / "policy"
    start.mkdir()
    folder.mkdir()
    save(tiny(tied=tied), start, top_layers=2)
    lm = load(start)
    assert distance(weights_of(lm), weights_of(tiny(tied=tied))) == 0
    trained(lm, tmp_path / "scratch", settings=replace(SETTINGS, trained_layers=2))
    save(lm, folder, start=start, top_layers=2)
    assert os.stat(folder / FROZEN).st_ino == os.stat(start / FROZEN).st_ino
    assert os.stat(folder / TRAINED).st_ino != os.stat(start / TRAINED).st_ino
    again = load(folder)
    assert distance(weights_of(again), weights_of(lm)) == 0
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.model(ids).logits, lm.model(ids).logits)
    assert again.prompt_ids("any") == lm.prompt_ids("any")


def test_human_pairs_are_tokenised_or_refused_but_never_dropped(tiny, shared_data):
    """HH-RLHF as it is: each row becomes a pair or has a reason, each pair its tokens or an error with the prompt."""
    from benchmarks.speed.pairs import hh_rlhf

    pairs, drops = hh_rlhf(shared_data / "hh_rlhf" / "harmless_base_test.jsonl.gz")
    assert len(pairs) + sum(drops.values()) == 2312
    lm, refused, kept = tiny(), 0, []
    for pair in pairs:
        if len(lm.prompt_ids(pair.prompt)) < 512:
            kept += tokenize(lm, [pair], 512)
        else:
            refused += 1
            with pytest.raises(BadData, match=re.escape(repr(pair.prompt[:60]))):
                tokenize(lm, [pair], 512)
    assert len(kept) + refused == len(pairs)
    assert 0 < refused < len(pairs)
    assert any(one.cut for one in kept)
    for one in kept:
        assert min(len(one.chosen), len(one.rejected)) > 0
        assert len(one.prompt) + max(len(one.chosen), len(one.rejected)) <= 512
        assert one.cut == (one.chosen[-1] != 0) + (one.rejected[-1] != 0)
