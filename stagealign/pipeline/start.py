"""Artifacts before the first round: prompts, starting weights and the starting policy."""

from typing import Any

from stagealign.data.mirrors import content_of
from stagealign.data.ultrafeedback import SFT_SPLIT, SPLITS
from stagealign.pipeline.kinds import LINK, START, WEIGHTS
from stagealign.pipeline.layout import Paths, make
from stagealign.store.artifact import Artifact


def prompts(at: Paths) -> Artifact:
    """The prompts of the scale's task, in their splits."""
    evaluation = at.scale.evaluation
    sizes: dict[str, Any] = {
        "test_prompts": evaluation.test_prompts,
        "validation_prompts": evaluation.validation_prompts,
    }
    if at.scale.data:
        sizes |= {"data": at.scale.data, "content": content_of(at.scale.data, SPLITS.values())}
    return make("prompts", at.task.prompts, f"{at.shared}/prompts", sizes)


def ratings(at: Paths, films: Artifact) -> dict[str, Artifact]:
    """The task's human ratings as an input; empty if it has none."""
    if at.task.ratings is None:
        return {}
    return {"ratings": make("ratings", at.task.ratings, f"{at.shared}/ratings", {}, films=films)}


def weights(at: Paths) -> Artifact:
    """The weights that the model starts from: an asset, published weights, or random ones of the same shape."""
    checkpoint, dtype = at.cell.checkpoint, at.training.dtype
    if checkpoint.asset:
        asset = {"asset": checkpoint.asset, "dtype": dtype}
        return make("weights", WEIGHTS, f"{at.shared}/{checkpoint.asset}", asset)
    params: dict[str, Any] = {"checkpoint": checkpoint.source, "revision": checkpoint.revision}
    kind = at.task.weights
    if not kind.fetches:
        params |= {"seed": 0, "trained_layers": at.training.trained_layers}
    return make("weights", kind, f"{at.shared}/{checkpoint.name}", params)


def start(at: Paths, base: Artifact, films: Artifact) -> Artifact:
    """The policy that the first round starts from: the weights as they are, or after supervised fine-tuning."""
    checkpoint = at.cell.checkpoint
    if checkpoint.sft is None:
        return make("start", LINK, f"{at.own}/start", {}, weights=base)
    params = {
        "epochs": checkpoint.sft.epochs,
        "learning_rate": checkpoint.sft.learning_rate,
        "batch": checkpoint.sft.batch,
        "max_length": checkpoint.sft.max_length or at.training.max_length,
        "trained_layers": at.training.trained_layers,
        "dtype": at.training.dtype,
        "seed": at.seed,
    }
    if checkpoint.template:
        params["template"] = checkpoint.template
    reviews = _conversations(at, films)
    return make("start", START, f"{at.own}/start", params, weights=base, reviews=reviews)


def _conversations(at: Paths, films: Artifact) -> Artifact:
    """Rows of supervised fine-tuning: reviews drawn by this seed, or all of a hub data set's."""
    sft, kind = at.cell.checkpoint.sft, at.task.conversations
    assert sft is not None, at.cell.id
    assert kind is not None, f"task {at.scale.task!r} has no rows for supervised fine-tuning"
    if sft.revision is None:
        drawn = {"rows": sft.rows, "rotten_share": sft.rotten_share, "seed": at.seed}
        return make("reviews", kind, f"{at.own}/reviews", drawn, films=films)
    data = f"{sft.data}@{sft.revision}"
    every = {"data": data, "content": content_of(data, [SFT_SPLIT]), "rows": sft.rows}
    return make("conversations", kind, f"{at.shared}/conversations", every)
