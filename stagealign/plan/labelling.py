"""Formulas of labels by a classifier or by a judge behind a server."""

from collections.abc import Mapping

from stagealign.grid.cell import Scale
from stagealign.plan import flops
from stagealign.plan.flops import LENGTHS
from stagealign.plan.formulas import Formula, Part, candidate_texts, gold_model
from stagealign.store.artifact import Artifact


def _read_pairs(artifact: Artifact, scale: Scale) -> tuple[float, float]:
    """(prompts, tokens of each prompt with each of its two candidates)."""
    prompts, _, mean = candidate_texts(artifact.inputs["candidates"], scale)
    return prompts, prompts * 2 * (LENGTHS[scale.key].prompt + mean)


def _read_votes(artifact: Artifact, scale: Scale) -> tuple[float, float]:
    """(prompts, tokens of each prompt with each completion and each of its two static candidates)."""
    lengths = LENGTHS[scale.key]
    prompts, count, mean = candidate_texts(artifact.inputs["completions"], scale)
    return prompts, prompts * (count * (lengths.prompt + mean) + 2 * (lengths.prompt + lengths.static))


def _scored(prompts: float, tokens: float, artifact: Artifact, scale: Scale) -> Part:
    """One forward of the classifier over these tokens; its size is estimated like that of a gold reward."""
    lm = gold_model(scale)
    context = LENGTHS[scale.key].prompt + LENGTHS[scale.key].sampled
    work = flops.body_flops(lm, tokens, context / 2)
    memory = lm.bytes + 34 * lm.shape.width * lm.size / 2 * context
    return {"tokens": tokens, "flops": {"forward": work}, "loaded": lm.bytes, "memory": memory,
            "disk": prompts * 200.0}  # fmt: skip


def _scored_pairs(artifact: Artifact, scale: Scale) -> Part:
    return _scored(*_read_pairs(artifact, scale), artifact, scale)


def _scored_votes(artifact: Artifact, scale: Scale) -> Part:
    return _scored(*_read_votes(artifact, scale), artifact, scale)


def _asked_pairs(artifact: Artifact, scale: Scale) -> Part:
    """Tokens that a judge reads: one comparison a prompt, in both orders. The server's work is not this machine's."""
    prompts, _, mean = candidate_texts(artifact.inputs["candidates"], scale)
    return {"tokens": prompts * 2 * (LENGTHS[scale.key].prompt + 2 * mean), "disk": prompts * 200.0}


def _asked_votes(artifact: Artifact, scale: Scale) -> Part:
    """Tokens that a judge reads: each completion against each of two static candidates, in both orders."""
    lengths = LENGTHS[scale.key]
    prompts, count, mean = candidate_texts(artifact.inputs["completions"], scale)
    return {"tokens": prompts * count * 4 * (lengths.prompt + mean + lengths.static), "disk": prompts * 200.0}


LABELLING: Mapping[str, Formula] = {
    "scored_pairs": _scored_pairs,
    "scored_votes": _scored_votes,
    "asked_pairs": _asked_pairs,
    "asked_votes": _asked_votes,
}
"""By the price that a kind names; `plan.price` reads them beside `plan.formulas.FORMULAS`."""
