"""What building one artifact costs, read off what it is made of: its kind, its weights, its numbers of texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagealign.grid import models, registry
from stagealign.grid.spec import Checkpoint, Shape
from stagealign.plan import flops as cost
from stagealign.plan.flops import ALPACA_EVAL, LENGTHS, MINILM, PAIRRM, Processor
from stagealign.store.artifact import LARGE, Artifact

MICRO_PAIRS = 1
"""Pairs in one forward on a GPU; execution, so memory is that of the least that works."""
SAMPLERS = ("sample", "vllm_sample", "served")
"""Rooms whose `build` samples; the formula is that of our own sampler."""
SAMPLED_ROWS = 256
"""Candidates that are sampled side by side."""
TEXT_BYTES = 12
"""On disk a sampled token: its id and its text."""
PART = re.compile(r"-\d+of\d+$")
"""What the name of a part has behind that of the whole."""
RATINGS = 4_763
"""Sentences that the lab's gold reward learns from, of about 28 tokens; measured."""
LIGHT = {"build_weights": 17.0, "fit": 2.0, "votes": 0.3, "build_static": 1.0, "measure": 0.7}
"""Seconds on a CPU of work that no FLOPs are counted for, by builder; measured, and nothing at other scales."""


@dataclass(frozen=True)
class Estimate:
    """Cost of one artifact, before a processor is chosen."""

    kind: str
    tokens: float = 0.0
    flops: Mapping[str, float] = field(default_factory=dict)
    """By kind of work, as in `cost.Processor.reached`."""
    loaded: float = 0.0
    """Bytes of weights read before the work starts."""
    memory: float = 0.0
    """Peak bytes on one device."""
    disk: float = 0.0
    """Bytes written."""
    judge_dollars: float = 0.0
    light: float = 0.0
    """Seconds on a CPU that no FLOPs are counted for."""

    def seconds(self, processor: Processor) -> float:
        """Seconds on one such processor."""
        return processor.seconds(self.flops, self.loaded) + (0.0 if processor.gpu else self.light)


@dataclass(frozen=True)
class Weights:
    """The language model that an artifact reads or makes."""

    parameters: float
    shape: Shape
    half: bool
    trained_layers: int | None

    @property
    def size(self) -> int:
        return 2 if self.half else 4

    @property
    def bytes(self) -> float:
        return self.parameters * self.size

    @property
    def trained(self) -> float:
        """Weights that a round changes."""
        if self.trained_layers is None:
            return self.parameters
        return self.trained_layers * cost.layer_weights(self.parameters, self.shape)


def estimate(artifact: Artifact, scale_key: str) -> Estimate:
    """The cost of building `artifact`; nothing is known of a kind that no formula names, and it counts as free."""
    module, _, name = artifact.builder.function.removeprefix("stagealign.").partition(":")
    kind = "weights" if _FORMULAS.get(name) is _weights else PART.sub("", artifact.path.rpartition("/")[2])
    found = _FORMULAS.get("sample" if module in SAMPLERS else name, _nothing)(artifact, scale_key)
    light = LIGHT.get(name, 0.0) if scale_key != "paper" else 0.0
    return Estimate(kind, light=light, **found)


def weights_of(artifact: Artifact, scale_key: str) -> Weights | None:
    """The language model behind an artifact; None where there is none, or none whose shape is known."""
    scale = registry.scale(scale_key)
    source = _source(artifact)
    named = {one.source.removeprefix("asset:"): one for one in models.CHECKPOINTS[scale_key].values()}
    checkpoint: Checkpoint | None = named.get(source or "")
    if checkpoint is None or checkpoint.shape is None:
        return None
    half = scale.training.dtype != "float32"
    return Weights(checkpoint.parameters, checkpoint.shape, half, scale.training.trained_layers)


def _source(artifact: Artifact) -> str | None:
    name: str | None = artifact.params.get("checkpoint") or artifact.params.get("asset")
    if "weights" not in artifact.inputs and "policy" not in artifact.inputs:
        return name
    return _source(artifact.inputs.get("policy") or artifact.inputs["weights"])


def _prompts(static: Artifact) -> int:
    """Prompts of a set of static candidates; all of its splits where no number is asked for."""
    asked = static.params["prompts"]
    if asked is not None:
        return int(asked)
    if tuple(static.params["splits"]) == ("train",):
        return registry.scale(static.path.partition("/")[0]).training.pairs
    sizes = static.inputs["films"].params
    return int(sizes["test_prompts"] + sizes["validation_prompts"])


def _texts(candidates: Artifact, scale_key: str) -> tuple[float, int, float]:
    """(prompts, candidates a prompt, mean tokens) of candidates, static or sampled."""
    lengths, parts = LENGTHS[scale_key], [one for name, one in candidates.inputs.items() if name.startswith("part")]
    if parts:
        prompts, count, mean = _texts(parts[0], scale_key)
        return prompts * len(parts), count, mean
    if "prompts" in candidates.inputs:
        _, cut = candidates.params.get("part", (1, 1))
        return _prompts(candidates.inputs["prompts"]) / cut, int(candidates.params["count"]), lengths.sampled
    return _prompts(candidates), 2, lengths.static


def _pairs(artifact: Artifact, scale_key: str) -> tuple[float, float, float]:
    """(tokens of all pairs, completion tokens, context) of the pairs that an artifact reads; a prompt counts once."""
    prompts, _, mean = _texts(artifact.inputs["pairs"].inputs["candidates"], scale_key)
    prompt = LENGTHS[scale_key].prompt
    return prompts * (prompt + 2 * mean), prompts * 2 * mean, (prompt + mean) / 2


def _nothing(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    return {}


def _weights(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm = weights_of(artifact, scale_key)
    return {"disk": lm.bytes} if lm else {}


def _start(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm, lengths = weights_of(artifact, scale_key), LENGTHS[scale_key]
    if lm is None:
        return {}
    row = lengths.conversation or lengths.prompt + lengths.static
    tokens = artifact.inputs["reviews"].params["rows"] * artifact.params["epochs"] * row
    frozen = 0.0
    if lm.trained_layers is not None:
        below = lm.shape.layers - lm.trained_layers
        frozen = cost.body_flops(lm.parameters, lm.shape, tokens, row / 2, below)
    flops = cost.training_flops(
        lm.parameters, lm.shape, tokens, tokens, row / 2, lm.trained_layers, recompute=lm.parameters > LARGE
    )
    memory = cost.training_memory(
        lm.parameters, lm.shape, row, row, lm.trained, lm.half, checkpointing=lm.parameters > LARGE
    )
    return {"tokens": tokens, "flops": {"sft": flops, "forward": frozen}, "loaded": lm.bytes, "memory": memory,
            "disk": lm.bytes}  # fmt: skip


def _sample(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm, lengths = weights_of(artifact, scale_key), LENGTHS[scale_key]
    if lm is None:
        return {}
    prompts, count, mean = _texts(artifact, scale_key)
    flops = cost.sampling_flops(lm.parameters, lm.shape, prompts, lengths.own, prompts * count, mean)
    rows = min(SAMPLED_ROWS, prompts * count)
    memory = cost.sampling_memory(lm.parameters, lm.shape, rows, lengths.prompt + mean, lm.half)
    tokens = prompts * count * mean
    return {"tokens": tokens, "flops": flops, "loaded": lm.bytes, "memory": memory, "disk": tokens * TEXT_BYTES}


def _trunk(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm = weights_of(artifact, scale_key)
    if lm is None or lm.trained_layers is None:
        return {}
    tokens, _, context = _pairs(artifact, scale_key)
    flops = cost.body_flops(lm.parameters, lm.shape, tokens, context, lm.shape.layers - lm.trained_layers)
    disk = tokens * lm.shape.width * lm.size
    return {"tokens": tokens, "flops": {"forward": flops}, "loaded": lm.bytes, "memory": lm.bytes + disk, "disk": disk}


def _reference(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm = weights_of(artifact, scale_key)
    if lm is None:
        return {}
    tokens, scored, context = _pairs(artifact, scale_key)
    flops = cost.forward_flops(lm.parameters, lm.shape, tokens, scored, context, lm.trained_layers)
    one = tokens / max(1, scored) * 4 * LENGTHS[scale_key].static
    memory = lm.bytes + 34 * lm.shape.width * one + 4 * one * lm.shape.vocabulary
    return {"tokens": tokens, "flops": {"forward": flops}, "loaded": lm.bytes, "memory": memory, "disk": scored * 0.1}


def _policy(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    lm = weights_of(artifact, scale_key)
    if lm is None:
        return {}
    tokens, scored, context = _pairs(artifact, scale_key)
    training = artifact.params["training"]
    large, epochs, lora = lm.parameters > LARGE, training["epochs"], training.get("peft")
    flops = epochs * cost.training_flops(
        lm.parameters, lm.shape, tokens, scored, context, lm.trained_layers, recompute=large, adapters=bool(lora)
    )
    longest = MICRO_PAIRS * 2 * training["max_length"]
    moved = cost.adapter_weights(lm.parameters, lm.shape, lora["rank"], lm.trained_layers) if lora else lm.trained
    memory = cost.training_memory(
        lm.parameters, lm.shape, longest, longest, lm.trained, lm.half, checkpointing=large, moved=moved
    )
    return {"tokens": epochs * tokens, "flops": {"train": flops}, "loaded": lm.bytes, "memory": memory,
            "disk": lm.trained * lm.size}  # fmt: skip


def _rank(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    if "weights" not in artifact.inputs["oracle"].params:
        return {}
    prompts, _, mean = _texts(artifact.inputs["candidates"], scale_key)
    tokens = prompts * 2 * (LENGTHS[scale_key].prompt + 2 * mean)
    return _read(tokens, disk=prompts * 2 * mean * TEXT_BYTES)


def _votes(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    """Six pairs among four candidates, each in both orders."""
    if "weights" not in artifact.inputs["oracle"].params:
        return {}
    prompts, _, mean = _texts(artifact.inputs["completions"], scale_key)
    tokens = prompts * 12 * (LENGTHS[scale_key].prompt + mean + LENGTHS[scale_key].static)
    return _read(tokens, disk=prompts * 100)


def _read(tokens: float, disk: float) -> dict[str, Any]:
    """PairRM over that many tokens."""
    memory = 4 * PAIRRM.parameters + 65_536 * 34 * 1024 * 2
    return {"tokens": tokens, "flops": {"encode": PAIRRM.flops(tokens)}, "loaded": 4 * PAIRRM.parameters,
            "memory": memory, "disk": disk}  # fmt: skip


def _embed(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    prompts, count, mean = _texts(artifact.inputs["candidates"], scale_key)
    tokens = prompts * count * min(mean, 256)
    return {"tokens": tokens, "flops": {"encode": MINILM.flops(tokens)}, "loaded": 4 * MINILM.parameters,
            "disk": prompts * count * 384 * 4}  # fmt: skip


def _gold(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    tokens = RATINGS * 28.0
    return {"tokens": tokens, "flops": {"encode": 3 * MINILM.flops(tokens)}, "disk": 4 * MINILM.parameters}


def _scores(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    """KL of the first completions, or of a judge's answers, under two models, and the gold reward."""
    texts = artifact.inputs.get("answers", artifact.inputs["completions"])
    lm, lengths = weights_of(texts, scale_key), LENGTHS[scale_key]
    prompts, _, mean = _texts(texts, scale_key)
    found: dict[str, Any] = {"disk": prompts * 100.0}
    if lm is None or "reference" not in artifact.inputs:
        return found
    tokens = prompts * (lengths.prompt + mean)
    flops = {"forward": 2 * cost.forward_flops(lm.parameters, lm.shape, tokens, prompts * mean, lengths.prompt)}
    memory = 2 * lm.bytes + 3 * 8 * mean * lm.shape.vocabulary * 4
    return found | {"tokens": 2 * tokens, "flops": flops, "loaded": 2 * lm.bytes, "memory": memory}


def _annotations(artifact: Artifact, scale_key: str) -> dict[str, Any]:
    """The judge's bill."""
    return {"judge_dollars": ALPACA_EVAL.dollars(), "disk": ALPACA_EVAL.prompts * 2000.0}


_FORMULAS = {
    "build_weights": _weights,
    "build_shape": _weights,
    "build_checkpoint": _weights,
    "build_start": _start,
    "sample": _sample,
    "build_trunk": _trunk,
    "build_reference": _reference,
    "build_policy": _policy,
    "rank": _rank,
    "votes": _votes,
    "embed": _embed,
    "fit_gold": _gold,
    "score": _scores,
    "score_annotated": _scores,
    "annotate": _annotations,
}
"""By builder; what is not here is text and counts, free beside the rest."""
