"""Formulas of what a classifier scores, for labels or as gold reward, and of what a judge behind a server labels."""

from collections.abc import Mapping

from stagealign.grid import models
from stagealign.grid.cell import Scale
from stagealign.grid.prices import PAID
from stagealign.plan import flops
from stagealign.plan.flops import LENGTHS, ModelSize
from stagealign.plan.formulas import Formula, Part, candidate_texts
from stagealign.store.artifact import Artifact

FRAME_TOKENS = 130
"""Tokens of a judge's question without prompt and responses (`oracle.judge.QUESTION`), at four characters a token."""


def classifier(scale: Scale, parameters: float) -> ModelSize:
    """Size of a classifier with so many weights, in float32; 0 if their number is unknown.

    Its shape is that of the scale's model that is nearest in size. A classifier of unknown size counts as large as the
    scale's largest model.
    """
    known = [checkpoint for checkpoint in models.CHECKPOINTS[scale.key].values() if checkpoint.shape is not None]
    parameters = parameters or max(checkpoint.parameters for checkpoint in known)
    nearest = min(known, key=lambda checkpoint: abs(checkpoint.parameters - parameters))
    assert nearest.shape is not None
    return ModelSize(parameters, nearest.shape)


def gold_model(scale: Scale) -> ModelSize:
    """Size of the classifier that evaluates."""
    return classifier(scale, scale.preference.gold_parameters)


def oracle_model(scale: Scale) -> ModelSize:
    """Size of the classifier that labels."""
    return classifier(scale, scale.preference.oracle_parameters)


def _reward_model(artifact: Artifact, scale: Scale) -> Part:
    """Weights of the classifier that labels or evaluates, read and written in float32."""
    weights = (oracle_model(scale) if artifact.role == "oracle" else gold_model(scale)).bytes
    return {"loaded": weights, "memory": weights, "disk": weights}


def _rewards(artifact: Artifact, scale: Scale) -> Part:
    """A classifier over every completion and static candidate of the held-out prompts."""
    model, lengths = gold_model(scale), LENGTHS[scale.key]
    prompts, count, mean = candidate_texts(artifact.inputs["completions"], scale)
    tokens = prompts * (count * (lengths.prompt + mean) + 2 * (lengths.prompt + lengths.static))
    work = flops.body_flops(model, tokens, (lengths.prompt + mean) / 2)
    memory = model.bytes + 34 * model.shape.width * model.size / 2 * (lengths.prompt + mean)
    return {"tokens": tokens, "flops": {"forward": work}, "loaded": model.bytes, "memory": memory,
            "disk": prompts * 200.0}  # fmt: skip


def _read_pairs(artifact: Artifact, scale: Scale) -> tuple[float, float]:
    """(prompts, tokens of each prompt with each of its two candidates)."""
    prompts, _, mean = candidate_texts(artifact.inputs["candidates"], scale)
    return prompts, prompts * 2 * (LENGTHS[scale.key].prompt + mean)


def _read_votes(artifact: Artifact, scale: Scale) -> tuple[float, float]:
    """(prompts, tokens of each prompt with each completion and each of its two static candidates)."""
    lengths = LENGTHS[scale.key]
    prompts, count, mean = candidate_texts(artifact.inputs["completions"], scale)
    return prompts, prompts * (count * (lengths.prompt + mean) + 2 * (lengths.prompt + lengths.static))


def _scored(prompts: float, tokens: float, scale: Scale) -> Part:
    """One forward of the classifier that labels over these tokens."""
    lm = oracle_model(scale)
    context = LENGTHS[scale.key].prompt + LENGTHS[scale.key].sampled
    work = flops.body_flops(lm, tokens, context / 2)
    memory = lm.bytes + 34 * lm.shape.width * lm.size / 2 * context
    return {"tokens": tokens, "flops": {"forward": work}, "loaded": lm.bytes, "memory": memory,
            "disk": prompts * 200.0}  # fmt: skip


def _scored_pairs(artifact: Artifact, scale: Scale) -> Part:
    return _scored(*_read_pairs(artifact, scale), scale)


def _scored_votes(artifact: Artifact, scale: Scale) -> Part:
    return _scored(*_read_votes(artifact, scale), scale)


def _asked(prompts: float, questions: float, tokens: float, scale: Scale) -> Part:
    """Questions to a judge of so many tokens each, answered with one token. The server's work is not this machine's.

    The price is that of `grid.prices.PAID`; of any other judge it is unknown, and said to be.
    """
    read = questions * (FRAME_TOKENS + tokens)
    model = scale.preference.oracle_named or scale.preference.oracle
    cost: Part = {"tokens": read, "disk": prompts * 200.0}
    if model in PAID:
        return cost | {"judge_dollars": PAID[model].of(read, questions)}
    return cost | {"unpriced": model}


def _asked_pairs(artifact: Artifact, scale: Scale) -> Part:
    """One comparison a prompt, in both orders."""
    prompts, _, mean = candidate_texts(artifact.inputs["candidates"], scale)
    return _asked(prompts, 2 * prompts, LENGTHS[scale.key].prompt + 2 * mean, scale)


def _asked_votes(artifact: Artifact, scale: Scale) -> Part:
    """Each completion against each of two static candidates, in both orders."""
    lengths = LENGTHS[scale.key]
    prompts, count, mean = candidate_texts(artifact.inputs["completions"], scale)
    return _asked(prompts, 4 * count * prompts, lengths.prompt + mean + lengths.static, scale)


LABELLING: Mapping[str, Formula] = {
    "reward_model": _reward_model,
    "rewards": _rewards,
    "scored_pairs": _scored_pairs,
    "scored_votes": _scored_votes,
    "asked_pairs": _asked_pairs,
    "asked_votes": _asked_votes,
}
"""By the price that a kind names; `plan.price` reads them beside `plan.formulas.FORMULAS`."""
