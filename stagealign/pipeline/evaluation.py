"""Artifacts that measure a policy and a round's data: gold reward, scores, capability, diversity."""

from collections.abc import Mapping

from stagealign.base.errors import BadSpec
from stagealign.base.kind import Kind
from stagealign.data.mirrors import content_of
from stagealign.grid.spec import Judging
from stagealign.pipeline import labels
from stagealign.pipeline.candidates import HELD_OUT, Asked, sample
from stagealign.pipeline.kinds import CAPABILITY, DATA, EMBEDDINGS
from stagealign.pipeline.layout import Layout, Paths, make
from stagealign.store.artifact import Artifact


def gold(at: Paths, ratings: Mapping[str, Artifact]) -> Artifact:
    """The gold reward: fitted here, a reward model, or an evaluation's prompts with the baseline's completions."""
    row, name, path = at.preference.gold_kinds, at.preference.gold_named, f"{at.shared}/gold"
    if name:
        given: dict[str, object] = {"weights": name, "revision": None}
        return make("gold", row.ready, f"{path}_{at.preference.gold_key}", given)
    if row.annotate:
        judging = _judging(at)
        given = {"data": judging.data, "revision": judging.revision, "content": content_of(judging.data)}
        return make("gold", row.ready, path, {**given, "prompts": judging.prompts})
    return make("gold", row.ready, path, row.params, **(ratings if row.learns_from_ratings else {}))


def _judging(at: Paths) -> Judging:
    """Prompts, judge and decoding of an evaluation: the scale's own, else those of its row."""
    judging = at.scale.evaluation.judging or at.preference.gold_kinds.judging
    if judging is None:
        raise BadSpec(
            f"gold reward {at.preference.gold!r}: a judge annotates, and nothing says which prompts; give its row in "
            "`GOLDS` a `judging`"
        )
    return judging


def scores(at: Layout, policy: Artifact, reference: Artifact | None) -> Artifact:
    """Completions on held-out prompts, the oracle's votes on them, and the numbers that follow."""
    folder = at.beside(policy) + (f"/{at.engine}" if at.engine else "")
    row, evaluation = at.preference.gold_kinds, at.scale.evaluation
    asked = Asked("completions", at.held_out, HELD_OUT, evaluation.completions, at.scale.decoding)
    completions = sample(at, f"{folder}/completions", policy, asked)
    votes = labels.votes(at, f"{folder}/votes", completions, at.held_out)
    params = {
        "gold": at.preference.gold,
        "sign": at.preference.sign,
        "repetition_limit": evaluation.repetition_limit,
        "dtype": at.training.dtype,
    }
    texts = {"completions": completions, "static": at.held_out, "gold": at.gold}
    if row.annotate:
        inputs = {"completions": completions, "votes": votes, **_judged(at, folder, policy, row.annotate)}
    else:
        inputs = {**texts, "votes": votes}
    if row.rewards:
        folder = f"{folder}/{at.preference.gold_key}"
        inputs["rewards"] = make("rewards", row.rewards, f"{folder}/rewards", {}, **texts)
    if reference is not None:
        inputs |= {"policy": policy, "reference": reference}
    return make("scores", row.scores, f"{folder}/scores", params, **inputs)


def _judged(at: Layout, folder: str, policy: Artifact, annotate: Kind) -> dict[str, Artifact]:
    """A policy's answers to the evaluation's prompts, one each, and the judge's annotations of them."""
    judging = _judging(at)
    answers = sample(at, f"{folder}/answers", policy, Asked("answers", at.gold, ("test",), 1, judging.decoding))
    annotations = make(
        "annotations", annotate, f"{folder}/annotations", {"judge": judging.judge}, answers=answers, gold=at.gold
    )
    return {"answers": answers, "annotations": annotations}


def capability(at: Layout, policy: Artifact) -> Artifact:
    """What a policy can do besides; it stands beside the policy, as it knows no preference."""
    params = {"tasks": at.scale.evaluation.capability, "dtype": at.training.dtype}
    return make("capability", CAPABILITY, f"{policy.folder}/capability", params, policy=policy)


def data(at: Layout, here: str, static: Artifact, **made: Artifact) -> Artifact:
    """What one round's data is like: its texts once for all who train on them, their likelihood by start policy.

    `made`: the round's candidates, pairs, reference log-probs and starting policy.
    """
    candidates = made["candidates"]
    where = candidates.folder
    made["votes"] = labels.votes(at, f"{where}/votes", candidates, static)
    if at.task.embeds:
        made["embeddings"] = make(
            "embeddings", EMBEDDINGS, f"{where}/embeddings", {"asset": "minilm"}, candidates=candidates
        )
    return make("data", DATA, f"{here}/data", {"max_length": at.training.max_length}, **made)
