"""The cost of the paper's grid as text: hours, dollars and days by GPU, and what 70B weights or 1M prompts would need.

Everything is computed as if nothing were built; no number of `docs/scale.md` is typed by hand.
"""

from collections.abc import Sequence
from pathlib import Path

from stagealign.base.batching import SampledBatch
from stagealign.base.errors import BadData
from stagealign.grid import models, registry, select
from stagealign.grid.cell import Cell, Scale
from stagealign.grid.spec import Shape
from stagealign.plan import flops as cost
from stagealign.plan.flops import GIB, GPUS, LENGTHS, PAIRRM, ModelSize, Processor
from stagealign.plan.plan import Plan, make_plan
from stagealign.store.folder import Store

START, END = "<!-- plan: made by `stagealign plan --scale paper --docs docs/scale.md` -->", "<!-- /plan -->"
COUNTS = (1, 8, 64)
LARGE, LARGE_SHAPE = 70.6e9, Shape(layers=80, width=8192, vocabulary=128_256, key_width=1024, heads=64)
"""Llama-3-70B."""
MANY = 1_000_000
NODE = 8
"""GPUs of one machine."""
TOKEN_BYTES = 36
"""A token id in a Python tuple: 8 for its place, 28 for the number itself."""


def with_scale(text: str) -> str:
    """`text` with the tables between its two marks rebuilt. Raises BadData if the marks are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise BadData(f"docs/scale.md: the marks {START!r} and {END!r} are not both there; put them back")
    return f"{before}{START}\n{tables()}\n{END}{after}"


def tables() -> str:
    """All tables, in Markdown."""
    empty = Store(Path("/nonexistent/stagealign"))
    scale = registry.scale("paper")

    def plan_on(on: Processor, cells: Sequence[Cell]) -> Plan:
        return make_plan(cells, scale.seeds, empty, on=on)

    grid, every = registry.cells("paper"), registry.cells("paper", extras=True)
    h200 = plan_on(GPUS["h200"], grid)
    parts = [
        f"**The grid, {len(grid)} cells and one seed, on {h200.processor.name}.** Without sharing between cells it "
        f"would be {h200.totals.gpu_hours_without_sharing:,.0f} GPU-hours.",
        _by_kind(h200),
        "**By GPU.** Days are GPU-hours over the number of GPUs, or the longest line of artifacts that need each other "
        "where that is longer: an artifact is one GPU's work here.",
        _by_gpu([plan_on(gpu, grid) for gpu in GPUS.values()]),
        f"**With all {len(every)} cells** (other models' samples, SLiC-HF on Qwen and Pythia, variants of what was not "
        "published):",
        _by_gpu([plan_on(GPUS["h200"], every)]),
        f"**Where it would break.** 70B is Llama-3-70B's shape; {MANY:,} prompts are "
        f"{MANY / scale.training.pairs:.1f} times today's.",
        _breaks(),
    ]
    return "\n\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; columns of numbers are right-aligned."""
    words = [any(" " in row[place] for row in rows) for place in range(len(headings))]
    lines = [headings, ["---" if word else "---:" for word in words], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_kind(plan: Plan) -> str:
    rows = []
    for kind, items in plan.by_role.items():
        hours = sum(item.seconds for item in items) / 3600
        dollars = sum(item.cost.judge_dollars for item in items)
        if hours < 0.05 and not dollars:
            continue
        tokens = sum(item.cost.tokens for item in items)
        peak = max(item.cost.memory for item in items) / GIB
        disk = sum(item.cost.disk for item in items) / GIB
        rows.append(
            [
                kind,
                str(len(items)),
                f"{tokens / 1e6:,.0f}",
                f"{hours:,.1f}",
                f"{peak:.0f}",
                f"{disk:,.0f}",
                f"{dollars:,.0f}",
            ]
        )
    totals = plan.totals
    rows.append(
        ["all", str(totals.artifacts), f"{totals.tokens / 1e6:,.0f}", f"{totals.gpu_hours:,.1f}",
         f"{totals.peak_memory_gib:.0f}", f"{totals.disk_gib:,.0f}", f"{totals.judge_dollars or 0:,.0f}"]
    )  # fmt: skip
    headings = ("artifacts", "number", "million tokens", "GPU-hours", "peak GiB", "disk GiB", "judge, dollars")
    return _table(headings, rows)


def _by_gpu(plans: Sequence[Plan]) -> str:
    rows = []
    for plan in plans:
        totals, gpu = plan.totals, plan.processor
        days = [max(plan.seconds / count, plan.critical_seconds) / 86_400 for count in COUNTS]
        needed = max(item.cost.needed for item in plan.to_build) / GIB
        fits = "yes" if needed <= gpu.memory_gib else f"no: {needed:.0f} GiB"
        sums = (f"{getattr(totals, name):,.0f}" for name in ("gpu_hours", "gpu_dollars", "judge_dollars"))
        rows.append([gpu.name, *sums, *(f"{day:.1f}" for day in days), fits])
    headings = (
        "GPU",
        "GPU-hours",
        "GPU, dollars",
        "judge, dollars",
        *(f"days on {n}" for n in COUNTS),
        "one GPU holds it",
    )
    return _table(headings, rows)


def _breaks() -> str:
    """Table of limits: the part, its size today, at 70B and at a million prompts, and the change that it needs."""
    scale, lengths = registry.scale("paper"), LENGTHS["paper"]
    eight = models.CHECKPOINTS["paper"]["llama3"]
    assert eight.shape is not None
    pairs, longest = scale.training.pairs, 2 * scale.training.max_length
    per_pair = lengths.prompt + 2 * lengths.sampled
    h200 = GPUS["h200"]

    def memory(model: ModelSize) -> float:
        return cost.training_memory(model, longest, longest, checkpointing=True) / GIB

    def hours(model: ModelSize, count: float) -> float:
        tokens, scored = count * per_pair, count * 2 * lengths.sampled
        flops = cost.training_flops(model, tokens, scored, per_pair / 4, recompute=True)
        return h200.seconds({"train": flops}) / 3600

    def sampling(model: ModelSize, count: float) -> float:
        flops = cost.sampling_flops(model, count, lengths.prompt, 2 * count, lengths.sampled)
        return h200.seconds(flops) / 3600

    large, small = ModelSize(LARGE, LARGE_SHAPE, half=True), ModelSize(eight.parameters, eight.shape, half=True)
    states = memory(large)
    batch = SampledBatch(64, 32, 0, lengths.prompt, scale.decoding.max_new_tokens)
    whole = cost.sampling_memory(large, batch) / GIB
    empty = Store(Path("/nonexistent/stagealign"))
    policies = len(make_plan(select.select("paper", "llama3"), scale.seeds, empty).by_role["policy"])
    ranked = PAIRRM.flops(pairs * 2 * per_pair)
    rows = [
        ["training memory, GiB", f"{memory(small):.0f}", f"{states:,.0f}", "the same",
         f"70B: {states:,.0f} / {h200.memory_gib:.0f} = {states / h200.memory_gib:.1f}, so at least "
         f"{-(-states // h200.memory_gib):.0f} H200, in practice {2 * NODE}; sharded states (FSDP, ZeRO-3)"],
        ["one round of training, GPU-hours", f"{hours(small, pairs):.1f}", f"{hours(large, pairs):.0f}",
         f"{hours(small, MANY):.0f}",
         f"both: {hours(large, MANY):,.0f}; {hours(large, MANY) / 64 / 24:.1f} days on 64, so a round must resume"],
        ["sampling memory, 64 rows, GiB",
         f"{cost.sampling_memory(small, batch) / GIB:.0f}", f"{whole:.0f}",
         "the same", f"70B: {whole:.0f} against {h200.memory_gib:.0f}: tensor parallel over two GPUs"],
        ["sampling a round, GPU-hours", f"{sampling(small, pairs):.1f}", f"{sampling(large, pairs):.0f}",
         f"{sampling(small, MANY):.0f}",
         f"a round's candidates are {scale.parts} artifacts, so {scale.parts} GPUs share a round; more parts for more"],
        ["PairRM labels of a round, GPU-hours", f"{h200.seconds({'encode': ranked}) / 3600:.2f}", "the same",
         f"{h200.seconds({'encode': ranked * MANY / pairs}) / 3600:.1f}", "it reads texts, not weights; data-parallel"],
        ["disk of one model's policies, GiB", f"{policies * 2 * small.parameters / GIB:,.0f}",
         f"{policies * 2 * LARGE / GIB:,.0f}", "the same",
         f"{policies} policies (DPO and SLiC-HF): keep the last round's alone, or low-rank adapters"],
        *_of_prompts(scale, per_pair),
    ]  # fmt: skip
    return _table(("part", "8B, today", "70B", f"{MANY:,} prompts", "what breaks, and what would have to change"), rows)


def _of_prompts(scale: Scale, per_pair: float) -> list[list[str]]:
    """Rows whose numbers follow from the number of prompts alone."""
    pairs = scale.training.pairs
    return [
        ["a round's token ids in memory, GiB", f"{pairs * per_pair * TOKEN_BYTES / GIB:.1f}", "the same",
         f"{MANY * per_pair * TOKEN_BYTES / GIB:.0f}",
         f"`train.reference.tokenize` keeps tuples, {TOKEN_BYTES} bytes a token, in every process: arrays of 4 "
         f"bytes would be {MANY * per_pair * 4 / GIB:.1f}"],
        ["rows in one file, million", f"{2 * pairs / 1e6:.2f}", "the same", f"{2 * MANY / 1e6:.0f}",
         "`read_rows` holds a file; it would have to be read in parts"],
        ["reference log-probs, MiB", f"{pairs * 8 / 2**20:.1f}", "the same", f"{MANY * 8 / 2**20:.1f}",
         "nothing: two numbers a pair"],
        ["boundary measurement, prompts", f"{scale.evaluation.test_prompts:,}", "the same", "the same",
         "nothing: its interval depends on its own prompts, not on the data's size"],
    ]  # fmt: skip
