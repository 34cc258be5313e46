"""Costs worked by hand: FLOPs, memory, time and dollars; and estimates of time beside real runs of the lab."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stagealign.base.batching import SampledBatch
from stagealign.grid import models, registry, scales, select, variants
from stagealign.grid.preferences import GOLDS
from stagealign.grid.prices import PaidJudge, TokenPrice
from stagealign.grid.spec import Shape
from stagealign.pipeline.rounds import plan_run
from stagealign.plan import flops as cost
from stagealign.plan.price import estimate

ROOT = Path(__file__).resolve().parents[2]
TOY = Shape(layers=2, width=10, vocabulary=50, key_width=5)
"""With 1,400 weights: 2 tables of 500, so 200 a layer."""
SIZE = cost.ModelSize(1400, TOY)


def test_flops_of_a_toy_by_hand():
    assert SIZE.layer == 200
    assert cost.ModelSize(900, Shape(2, 10, 50, 5, tied=True)).layer == 200
    # A token: 2 layers x (2 x 200 for the weights + 4 x 10 x 3 for attending to 3 others) = 1,040.
    assert cost.body_flops(SIZE, tokens=7, context=3) == 7 * 1040
    assert cost.body_flops(SIZE, tokens=7, context=3, layers=1) == 7 * 520
    # The head: 2 x 50 x 10 = 1,000 a scored token.
    assert cost.forward_flops(SIZE, tokens=7, scored=4, context=3) == 7 * 1040 + 4000
    assert cost.training_flops(SIZE, 7, 4, 3) == 3 * (7 * 1040 + 4000)
    assert cost.training_flops(SIZE, 7, 4, 3, recompute=True) == 4 * 7 * 1040 + 3 * 4000
    # One of two layers learns, from the trunk's output: the head only passes its gradient on.
    assert cost.training_flops(replace(SIZE, trained_layers=1), 7, 4, 3) == 3 * 7 * 520 + 2 * 4000
    sampled = cost.sampling_flops(SIZE, prompts=2, prompt_tokens=6, rows=4, sampled_tokens=8)
    assert sampled["forward"] == 12 * 2 * (400 + 40 * 3)
    assert sampled["decode"] == 32 * 2 * (400 + 40 * 10) + 32 * 1000


def test_adapters_of_llama_3_by_hand():
    """Rank 128 on q and o (4096 x 4096), k and v (4096 x 1024), gate, up and down (4096 x 14336), in 32 layers."""
    llama = models.CHECKPOINTS["paper"]["llama3"]
    size = cost.ModelSize(llama.parameters, llama.shape)
    by_hand = 32 * 128 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert cost.adapter_weights(size, 128) == pytest.approx(by_hand, rel=0.01)
    assert cost.adapter_weights(replace(size, trained_layers=8), 128) == pytest.approx(by_hand / 4, rel=0.01)
    # Nothing but the adapters learns: 2 forwards' worth a pass, and 1 more where it is recomputed.
    assert cost.training_flops(SIZE, 7, 4, 3, adapters=True) == 2 * (7 * 1040 + 4000)
    assert cost.training_flops(SIZE, 7, 4, 3, recompute=True, adapters=True) == 3 * 7 * 1040 + 2 * 4000


def test_a_round_of_adapters_is_estimated_as_one():
    (cell,) = variants.adapted([registry.cell("llama3-dpo-1off", "paper")], "lora")
    whole, adapters = (
        estimate(plan_run(one, 0).rounds[0][0].policy, one.scale)
        for one in (registry.cell("llama3-dpo-1off", "paper"), cell)
    )
    assert whole.memory > 120 * cost.GIB
    assert 20 * cost.GIB < adapters.memory < 38 * cost.GIB
    assert adapters.flops["train"] < 0.8 * whole.flops["train"]


def test_memory_of_a_toy_by_hand():
    half = replace(SIZE, half=True)
    # float32, all learns: 4 + 4 + 8 a weight; 34 x 10 x 2 bytes a layer and token; 12 x 50 a scored one.
    assert cost.training_memory(SIZE, 3, 2, checkpointing=False) == (16 * 1400 + 3 * 2 * 680 + 2 * 600)
    # bfloat16: 2 + 2 + 8 and the float32 copy's 4; with checkpointing 2 x 10 a layer, and one whole one.
    assert cost.training_memory(half, 3, 2, checkpointing=True) == (16 * 1400 + 3 * (2 * 20 + 340) + 2 * 600)


def test_sampling_memory_of_a_toy_by_hand():
    """4 rows of 2 prompts, 100 tokens each and 60 new ones; a head of width 10, an MLP of 0 values a token."""
    half = replace(SIZE, half=True, parameters=1000 + 2 * 300, shape=replace(TOY, heads=1))
    shape = cost.sampler_shape(half)
    assert shape.mlp == 0
    assert cost.sampler_shape(replace(half, parameters=1000 + 2 * 340)).mlp == 4
    batch = SampledBatch(rows=4, prompts=2, prefix=20, tail=100, new=60)
    # Reading: keys and values of 2 x 100 tokens in 2 layers of width 5, and 3.4 tensors of 100 x 120 scores a prompt.
    reading = 2 * (200 * 2 * 2 * 5 + 3.4 * 100 * 120 * 2)
    # Writing: 4 x 160 tokens of width 5, twice in 2 layers and once as a copy; 2.2 float32 logits of 50, or scores.
    writing = 2 * (4 * 160 * 5 * 5) + max(4 * 4 * 50 * 2.2, 2 * 3.4 * 4 * 180)
    assert cost.sampling_memory(half, batch) == pytest.approx(2 * 1600 + max(reading, writing))
    assert reading > writing
    longer = replace(batch, new=3000)
    kept = 2 * (4 * 3100 * 5 * 5) + 2 * 3.4 * 4 * 3120
    assert cost.sampling_memory(half, longer) == pytest.approx(2 * 1600 + kept)
    one = replace(batch, rows=1, prompts=0.5)
    for rows in (1, 3, 256):
        memory = half.bytes + (rows + 0.5) * shape.peak(one) / 0.85
        assert cost.sampled_rows(half, one, 256, memory) == rows
    assert cost.sampled_rows(half, one, 256, 0.0) == 1


def test_time_and_dollars_by_hand():
    slow = cost.Processor("x", "x", 100.0, 1, 2, "made up", reached={"train": 0.5, "decode": 0.1}, load=10)
    assert slow.seconds({"train": 200, "decode": 30}, loaded_bytes=40) == 4 + 3 + 4
    judge = PaidJudge("x", TokenPrice(10, 30, "made up"), 200, 50, 400, 350, "made up")
    assert judge.dollars(100) == pytest.approx(100 * (1000 * 10 + 30) / 1e6)
    assert 5 < GOLDS["alpaca_eval"].judge.dollars(805) < 15, "its README says less than 10 dollars a model"


def test_what_is_known_of_real_models():
    """An 8B model: 16 bytes a weight are 120 GiB, so one H200 trains it with recomputed activations and not without."""
    llama = models.CHECKPOINTS["paper"]["llama3"]
    size = cost.ModelSize(llama.parameters, llama.shape, half=True)
    assert size.layer == pytest.approx(218e6, rel=0.01)
    kept, recomputed = (cost.training_memory(size, 4096, 4096, again) / cost.GIB for again in (False, True))
    assert recomputed < cost.GPUS["h200"].memory_gib < kept
    assert all(gpu.source and gpu.dollars > 0 and gpu.gpu for gpu in cost.GPUS.values())
    assert not cost.CPU.gpu
    for scale in scales.SCALES:
        for checkpoint in models.CHECKPOINTS[scale].values():
            assert 0.5e6 < cost.ModelSize(checkpoint.parameters, checkpoint.shape).layer < 0.3e9, checkpoint.source


@pytest.mark.parametrize("scale", list(scales.SCALES))
def test_every_kind_of_work_is_priced(scale):
    """Kinds that cost something at paper scale are not free; text and counts are."""
    free = {"prompts", "reviews", "conversations", "ratings", "data", "oracle", "static1", "gold"}
    for cell in select.select(scale, "pythia and 2off_on"):
        for artifact in plan_run(cell, 0).artifacts.values():
            found = estimate(artifact, cell.scale)
            if artifact.kind.function.endswith(
                (":build_link", "static", ":fit_letters", ":fit_vowels", ":join_candidates", ":join_pairs")
            ):
                continue
            if artifact.role not in free and not (
                scale != "paper" and artifact.role in ("votes", "pairs", "candidates")
            ):
                assert found.flops or found.disk, artifact.path
            assert found.seconds(cost.GPUS["h200"]) < 1e6
            assert found.memory < 300 * cost.GIB


def test_time_estimates_beside_real_runs_of_the_lab():
    """Sums over all artifacts, and over each kind that takes long; the runs were made with other work beside them.

    So they are compared as sums: within 30% in all, and each kind within a factor that one busy hour can make.
    """
    real = {}
    for path in sorted((ROOT / "results").rglob("lab/*-seed*.json")):
        real |= {name: made["seconds"] for name, made in json.loads(path.read_text())["artifacts"].items()}
    if len(real) < 50:
        pytest.skip("fewer than 50 artifacts have measured times in results")
    kinds: dict[str, list[float]] = {}
    for cell in registry.cells("lab"):
        for seed in registry.scale("lab").seeds:
            for name, artifact in plan_run(cell, seed).artifacts.items():
                if name in real:
                    found = estimate(artifact, cell.scale)
                    sums = kinds.setdefault(artifact.role, [0.0, 0.0])
                    sums[0] += found.seconds(cost.CPU)
                    sums[1] += real.pop(name)
    estimated, measured = (sum(sums[place] for sums in kinds.values()) for place in (0, 1))
    assert 0.7 < estimated / measured < 1.3, f"{estimated:.0f} s estimated, {measured:.0f} s measured"
    for kind, (ours, theirs) in kinds.items():
        if theirs > 0.05 * measured:
            assert 0.5 < ours / theirs < 2, f"{kind}: {ours:.0f} s estimated, {theirs:.0f} s measured"
