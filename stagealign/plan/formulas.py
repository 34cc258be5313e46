"""Formulas of prices: from an artifact's spec to tokens, FLOPs, memory, disk and dollars."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stagealign.base.batching import LARGE_MODEL, SAMPLED_ROWS, SampledBatch
from stagealign.grid import models
from stagealign.grid.cell import Scale
from stagealign.grid.spec import Benchmark, Checkpoint
from stagealign.plan import flops
from stagealign.plan.flops import LENGTHS, MINILM, PAIRRM, ModelSize
from stagealign.store.artifact import Artifact

MICRO_PAIRS = 1
"""Pairs in one forward on a GPU: the fewest possible, so memory is the least that works."""
TEXT_BYTES = 12
"""Bytes on disk of a sampled token: its id and its text."""
RATINGS = 4_763
"""Sentences that the lab's gold reward learns from, of about 28 tokens; measured."""
ITEMS = {"arc_challenge": 1_172, "gsm8k": 1_319, "hellaswag": 10_042}
"""Items of lm-eval's tasks for a spec that takes all of them; the data sets' published test splits."""
ITEM_TOKENS, CHOICES = 70, 4
"""Tokens of one item, or of one solved example before it, and answers that each is scored with; assumed."""


Part = dict[str, Any]
"""Fields of a `CostEstimate` that a formula fills in."""
Formula = Callable[[Artifact, Scale], Part]


def weights_of(artifact: Artifact, scale: Scale) -> ModelSize | None:
    """Size of the language model behind an artifact; None if it has none, or the shape is unknown."""
    checkpoint = checkpoint_of(artifact, scale)
    if checkpoint is None or checkpoint.shape is None:
        return None
    half = scale.training.dtype != "float32"
    return ModelSize(checkpoint.parameters, checkpoint.shape, half, scale.training.trained_layers)


def checkpoint_of(artifact: Artifact, scale: Scale) -> Checkpoint | None:
    """The scale's checkpoint whose weights an artifact reads; None if it reads none of them."""
    named = {known.asset or known.source: known for known in models.CHECKPOINTS[scale.key].values()}
    return named.get(_source(artifact) or "")


def _source(artifact: Artifact) -> str | None:
    name: str | None = artifact.params.get("checkpoint") or artifact.params.get("asset")
    if "weights" not in artifact.inputs and "policy" not in artifact.inputs:
        return name
    return _source(artifact.inputs.get("policy") or artifact.inputs["weights"])


def _prompts(static: Artifact, scale: Scale) -> int:
    """Number of prompts of a set of static candidates; all prompts of its splits if the spec names no number."""
    asked = static.params["prompts"]
    if asked is not None:
        return int(asked)
    if tuple(static.params["splits"]) == ("train",):
        return scale.training.pairs
    sizes = static.inputs["films"].params
    return int(sizes["test_prompts"] + sizes["validation_prompts"])


def candidate_texts(candidates: Artifact, scale: Scale) -> tuple[float, int, float]:
    """(prompts, candidates a prompt, mean tokens) of candidates, static or sampled."""
    lengths = LENGTHS[scale.key]
    parts = [part for name, part in candidates.inputs.items() if name.startswith("part")]
    if parts:
        prompts, count, mean = candidate_texts(parts[0], scale)
        return prompts * len(parts), count, mean
    if "prompts" in candidates.inputs:
        _, part_count = candidates.params.get("part", (1, 1))
        return (
            _prompts(candidates.inputs["prompts"], scale) / part_count,
            int(candidates.params["count"]),
            lengths.sampled,
        )
    return _prompts(candidates, scale), 2, lengths.static


def _pairs(artifact: Artifact, scale: Scale) -> tuple[float, float, float]:
    """(tokens of all pairs, completion tokens, context) of the pairs that an artifact reads; a prompt counts once."""
    prompts, _, mean = candidate_texts(artifact.inputs["pairs"].inputs["candidates"], scale)
    prompt = LENGTHS[scale.key].prompt
    return prompts * (prompt + 2 * mean), prompts * 2 * mean, (prompt + mean) / 2


def _free(artifact: Artifact, scale: Scale) -> Part:
    """Negligible cost, as of text and counts."""
    return {}


def _weights(artifact: Artifact, scale: Scale) -> Part:
    lm = weights_of(artifact, scale)
    return {"disk": lm.bytes} if lm else {}


def _start(artifact: Artifact, scale: Scale) -> Part:
    lm, lengths = weights_of(artifact, scale), LENGTHS[scale.key]
    if lm is None:
        return {}
    row = lengths.conversation or lengths.prompt + lengths.static
    tokens = artifact.inputs["reviews"].params["rows"] * artifact.params["epochs"] * row
    frozen = 0.0
    if lm.trained_layers is not None:
        below = lm.shape.layers - lm.trained_layers
        frozen = flops.body_flops(lm, tokens, row / 2, below)
    large = lm.parameters > LARGE_MODEL
    work = flops.training_flops(lm, tokens, tokens, row / 2, recompute=large)
    memory = flops.training_memory(lm, row, row, checkpointing=large)
    return {"tokens": tokens, "flops": {"sft": work, "forward": frozen}, "loaded": lm.bytes, "memory": memory,
            "disk": lm.bytes}  # fmt: skip


def _sample(artifact: Artifact, scale: Scale) -> Part:
    lm, lengths = weights_of(artifact, scale), LENGTHS[scale.key]
    if lm is None:
        return {}
    prompts, count, mean = candidate_texts(artifact, scale)
    work = flops.sampling_flops(lm, prompts, lengths.own, prompts * count, mean)
    checkpoint, decoding = checkpoint_of(artifact, scale), artifact.params["decoding"]
    assert checkpoint is not None, "its weights are known"
    new = min(decoding.max_new_tokens, (checkpoint.context or math.inf) - lengths.prompt)
    penalties = bool(decoding.presence_penalty or decoding.frequency_penalty)
    one = SampledBatch(1, 1 / count, lengths.prompt - lengths.own, lengths.own, new, penalties)
    rows = min(SAMPLED_ROWS, prompts * count)
    if scale.on_gpus:
        rows = flops.sampled_rows(lm, one, rows, flops.GPUS[scale.processor].memory_gib * flops.GIB)
    tokens = prompts * count * mean
    return {"tokens": tokens, "flops": work, "loaded": lm.bytes, "disk": tokens * TEXT_BYTES,
            "memory": flops.sampling_memory(lm, replace(one, rows=rows, prompts=rows / count)),
            "least_memory": flops.sampling_memory(lm, one)}  # fmt: skip


def _trunk(artifact: Artifact, scale: Scale) -> Part:
    lm = weights_of(artifact, scale)
    if lm is None or lm.trained_layers is None:
        return {}
    tokens, _, context = _pairs(artifact, scale)
    work = flops.body_flops(lm, tokens, context, lm.shape.layers - lm.trained_layers)
    disk = tokens * lm.shape.width * lm.size
    return {
        "tokens": tokens,
        "flops": {"forward": work},
        "loaded": lm.bytes,
        "memory": 4 * lm.parameters + disk,
        "disk": disk,
    }


def _reference(artifact: Artifact, scale: Scale) -> Part:
    lm = weights_of(artifact, scale)
    if lm is None:
        return {}
    tokens, scored, context = _pairs(artifact, scale)
    work = flops.forward_flops(lm, tokens, scored, context, lm.trained_layers)
    batch_tokens = tokens / max(1, scored) * 4 * LENGTHS[scale.key].static
    memory = 4 * lm.parameters + 34 * lm.shape.width * batch_tokens + 4 * batch_tokens * lm.shape.vocabulary
    return {"tokens": tokens, "flops": {"forward": work}, "loaded": lm.bytes, "memory": memory, "disk": scored * 0.1}


def _policy(artifact: Artifact, scale: Scale) -> Part:
    lm = weights_of(artifact, scale)
    if lm is None:
        return {}
    tokens, scored, context = _pairs(artifact, scale)
    training = artifact.params["training"]
    large, epochs, lora = lm.parameters > LARGE_MODEL, training["epochs"], training.get("peft")
    work = epochs * flops.training_flops(lm, tokens, scored, context, recompute=large, adapters=bool(lora))
    longest = MICRO_PAIRS * 2 * training["max_length"]
    moved = flops.adapter_weights(lm, lora["rank"]) if lora else lm.trained
    memory = flops.training_memory(lm, longest, longest, checkpointing=large, moved=moved)
    return {"tokens": epochs * tokens, "flops": {"train": work}, "loaded": lm.bytes, "memory": memory,
            "disk": lm.trained * lm.size}  # fmt: skip


def _rank(artifact: Artifact, scale: Scale) -> Part:
    if "weights" not in artifact.inputs["oracle"].params:
        return {}
    prompts, _, mean = candidate_texts(artifact.inputs["candidates"], scale)
    tokens = prompts * 2 * (LENGTHS[scale.key].prompt + 2 * mean)
    return _read(tokens, disk=prompts * 2 * mean * TEXT_BYTES)


def _votes(artifact: Artifact, scale: Scale) -> Part:
    """PairRM over the six pairs among four candidates, each in both orders."""
    if "weights" not in artifact.inputs["oracle"].params:
        return {}
    prompts, _, mean = candidate_texts(artifact.inputs["completions"], scale)
    tokens = prompts * 12 * (LENGTHS[scale.key].prompt + mean + LENGTHS[scale.key].static)
    return _read(tokens, disk=prompts * 100)


def _read(tokens: float, disk: float) -> Part:
    """Cost of PairRM over this number of tokens."""
    memory = 4 * PAIRRM.parameters + 65_536 * 34 * 1024 * 2
    return {"tokens": tokens, "flops": {"encode": PAIRRM.flops(tokens)}, "loaded": 4 * PAIRRM.parameters,
            "memory": memory, "disk": disk}  # fmt: skip


def _embed(artifact: Artifact, scale: Scale) -> Part:
    prompts, count, mean = candidate_texts(artifact.inputs["candidates"], scale)
    tokens = prompts * count * min(mean, 256)
    return {"tokens": tokens, "flops": {"encode": MINILM.flops(tokens)}, "loaded": 4 * MINILM.parameters,
            "disk": prompts * count * 384 * 4}  # fmt: skip


def _gold(artifact: Artifact, scale: Scale) -> Part:
    tokens = RATINGS * 28.0
    return {"tokens": tokens, "flops": {"encode": 3 * MINILM.flops(tokens)}, "disk": 4 * MINILM.parameters}


def _scores(artifact: Artifact, scale: Scale) -> Part:
    """KL of the first completions, or of a judge's answers, under two models, and the gold reward."""
    texts = artifact.inputs.get("answers", artifact.inputs["completions"])
    lm, lengths = weights_of(texts, scale), LENGTHS[scale.key]
    prompts, _, mean = candidate_texts(texts, scale)
    cost: Part = {"disk": prompts * 100.0}
    if lm is None or "reference" not in artifact.inputs:
        return cost
    tokens = prompts * (lengths.prompt + mean)
    work = {"forward": 2 * flops.forward_flops(lm, tokens, prompts * mean, lengths.prompt)}
    memory = 2 * lm.bytes + 3 * 8 * mean * lm.shape.vocabulary * 4
    return cost | {"tokens": 2 * tokens, "flops": work, "loaded": 2 * lm.bytes, "memory": memory}


def _annotations(artifact: Artifact, scale: Scale) -> Part:
    """The judge's bill."""
    row = scale.preference.gold_kinds
    judging = scale.evaluation.judging or row.judging
    prompts = judging.prompts if judging else 0
    return {"judge_dollars": row.judge.dollars(prompts) if row.judge else 0.0, "disk": prompts * 2000.0}


def _pairrm(artifact: Artifact, scale: Scale) -> Part:
    """PairRM's weights, downloaded and written."""
    return {"loaded": 4 * PAIRRM.parameters, "memory": 4 * PAIRRM.parameters, "disk": 4 * PAIRRM.parameters}


def _capability(artifact: Artifact, scale: Scale) -> Part:
    """lm-eval over the spec's tasks; it holds the weights twice while it loads them."""
    lm = weights_of(artifact, scale)
    if lm is None:
        return {}
    tokens = sum(map(_task_tokens, artifact.params["tasks"]))
    work = flops.forward_flops(lm, tokens, tokens, ITEM_TOKENS)
    return {"tokens": tokens, "flops": {"forward": work}, "loaded": lm.bytes, "memory": 2 * lm.bytes, "disk": 1e5}


def _task_tokens(benchmark: Benchmark) -> float:
    """Tokens that lm-eval reads for one task: each item with its examples, once an answer."""
    items = benchmark.items or ITEMS.get(benchmark.task, 1_000)
    return items * CHOICES * (benchmark.shots + 1) * ITEM_TOKENS


FORMULAS: Mapping[str, Formula] = {
    "free": _free,
    "weights": _weights,
    "start": _start,
    "sample": _sample,
    "trunk": _trunk,
    "reference": _reference,
    "policy": _policy,
    "pairrm": _pairrm,
    "rank": _rank,
    "votes": _votes,
    "embed": _embed,
    "fit_gold": _gold,
    "scores": _scores,
    "annotations": _annotations,
    "capability": _capability,
}
"""By the price that a kind names."""
