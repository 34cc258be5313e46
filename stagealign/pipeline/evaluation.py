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
            f"gold reward {at.preference.gold!r}: its row of `GOLDS` has `annotate` but no `judging`; add "
            "`judging`, which names the prompts"
        )
    return judging


def scores(at: Layout, policy: Artifact, reference: Artifact | None) -> Artifact:
    """Metrics of a policy: of its completions of held-out prompts, and of the oracle's votes on them.

    `reference` is the model of the KL; None for a policy that has no KL.
    """
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
    """Capability of a policy, in a folder beside it, as it does not depend on the preference."""
    params = {"tasks": at.scale.evaluation.capability, "dtype": at.training.dtype}
    return make("capability", CAPABILITY, f"{policy.folder}/capability", params, policy=policy)


def data(at: Layout, round_folder: str, static: Artifact, **inputs: Artifact) -> Artifact:
    """Description of one round's data: votes and embeddings are shared by all policies that train on its candidates.

    `inputs`: the round's candidates, pairs, reference log-probs and starting policy.
    """
    candidates = inputs["candidates"]
    folder = candidates.folder
    inputs["votes"] = labels.votes(at, f"{folder}/votes", candidates, static)
    if at.task.embeds:
        inputs["embeddings"] = make(
            "embeddings", EMBEDDINGS, f"{folder}/embeddings", {"asset": "minilm"}, candidates=candidates
        )
    return make("data", DATA, f"{round_folder}/data", {"max_length": at.training.max_length}, **inputs)
