"""One arithmetic for policy and reference: at the first step the margin is 0, at any dtype and in any batch."""

import math
from dataclasses import replace

import pytest
import torch
from factory_training import DPO, SETTINGS, data_of, pairs_of

from stagealign.data.records import write_rows
from stagealign.policy.lm import save, tensor
from stagealign.store.artifact import Context, Work
from stagealign.train import reference as passes
from stagealign.train.reference import TrainingSet, build_reference, build_trunk, reference_logps, tokenize
from stagealign.train.trainer import align

HALF = replace(SETTINGS, dtype="bfloat16", learning_rate=0.0, warmup=0.0, max_grad_norm=1e9)


def long_pairs(count):
    """Pairs of up to 200 tokens a side, no two of one length."""
    return [
        replace(pair, chosen=pair.chosen * (5 + i), rejected=pair.rejected * (3 + i))
        for i, pair in enumerate(pairs_of(count))
    ]


def built(lm, folder, kind, pairs, trained_layers=None, **inputs):
    """Output of a builder at bfloat16, in a folder of its own."""
    given = {"policy": folder / "policy", "weights": folder / "policy", "pairs": folder / "pairs", **inputs}
    for place in (given["policy"], given["pairs"], folder / kind.__name__):
        place.mkdir(parents=True, exist_ok=True)
    save(lm, given["policy"])
    write_rows(given["pairs"] / "pairs.jsonl", pairs)
    params = {"max_length": 512, "dtype": "bfloat16", "trained_layers": trained_layers}
    kind(Work(params, given, folder / kind.__name__, folder, Context()))
    return folder / kind.__name__


@pytest.mark.parametrize("trained_layers", [None, 2], ids=["whole", "trunk"])
@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_the_first_margin_is_0_at_bfloat16(shape, trained_layers, tiny, tmp_path):
    """By the builders that a run has: every margin of a round that does not move is exactly 0."""
    pairs, lm = long_pairs(12), tiny(shape)
    trunk = None
    given = {}
    if trained_layers:
        given["trunk"] = built(lm, tmp_path, build_trunk, pairs, trained_layers)
        trunk = tensor(given["trunk"] / "trunk.safetensors", "trunk")
    folder = built(lm, tmp_path, build_reference, pairs, trained_layers, **given)
    reference = tensor(folder / "reference.safetensors", "reference")
    for micro in (1, 2, 4):
        data = TrainingSet(tokenize(lm, pairs, 512), reference, trunk)
        settings = replace(HALF, micro_batch=micro, trained_layers=trained_layers)
        curve = align(tiny(shape), data, DPO, settings, tmp_path / f"{micro}")
        assert [entry["margin"] for entry in curve] == [0.0] * 3
        assert [entry["kl"] for entry in curve] == [0.0] * 3
        assert [entry["loss"] for entry in curve] == pytest.approx([math.log(2)] * 3, abs=1e-6)


def test_a_batch_moves_no_log_prob_at_bfloat16(tiny, monkeypatch):
    """At most 0.01 nats rms was asked for; products of one row do not depend on the others here, so it is 0."""
    lm, pairs = tiny(), long_pairs(9)
    tokens = tokenize(lm, pairs, 512)
    together = reference_logps(lm, tokens, None, None, "bfloat16")
    for size in (1, 2, 9):
        monkeypatch.setattr(
            passes, "by_length", lambda _, size=size: [list(range(9))[i : i + size] for i in range(0, 9, size)]
        )
        moved = reference_logps(lm, tokens, None, None, "bfloat16") - together
        assert (moved[:, 0] - moved[:, 1]).pow(2).mean().sqrt() <= 0.01
    whole = reference_logps(lm, tokens, None, None)
    assert 0.001 < (whole - together).abs().max() < 5, "bfloat16 it was"


def test_trls_reference_moves_with_the_batch(tiny, trl_dpo):
    """TRL's value beside ours: its precomputed reference against the policy in training, same pairs, rms in nats."""
    lm, pairs = tiny(), long_pairs(9)
    trainer = trl_dpo(lm, pairs, per_device_train_batch_size=1)
    rows = list(trainer.train_dataset)

    def margins(size):
        found = []
        for start in range(0, len(rows), size):
            batch = trainer.data_collator(rows[start : start + size])
            with torch.autocast("cpu", torch.bfloat16):
                chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
            found.append(chosen - rejected)
        return torch.cat(found)

    theirs = (margins(1) - margins(3)).pow(2).mean().sqrt().item()
    print(f"step-0 margin, rms in nats: TRL {theirs:.3f} from batches of 1 to batches of 3, ours 0")
    assert theirs > 0.01


def test_dropout_is_off_in_a_round(tiny, tmp_path):
    """A policy with rates of 0.5 everywhere starts at ln 2, as the reference has none."""
    lm = tiny("neox")
    data = data_of(lm, pairs_of(8))
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    curve = align(lm, data, DPO, replace(SETTINGS, learning_rate=0.0), tmp_path)
    assert [entry["loss"] for entry in curve] == pytest.approx([math.log(2)] * 2, abs=1e-5)
