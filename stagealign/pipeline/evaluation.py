"""What measures a policy and a round's data: gold reward, scores, capability, diversity."""

from collections.abc import Mapping
from typing import Any

from stagealign.data.mirrors import content_of
from stagealign.grid.spec import Judging
from stagealign.pipeline import labels
from stagealign.pipeline.candidates import HELD_OUT, Asked, sample
from stagealign.pipeline.kinds import CAPABILITY, DATA, EMBEDDINGS
from stagealign.pipeline.layout import Layout, Paths, make
from stagealign.store.artifact import Artifact


def gold(at: Paths, ratings: Mapping[str, Artifact]) -> Artifact:
    """The gold reward: fitted here, a judge's prompts with the baseline's completions, or a reward model."""
    row, judging, name = at.preference.gold_kinds, at.scale.evaluation.judging, at.preference.rewarded
    path = f"{at.shared}/gold"
    if name:
        given: dict[str, Any] = {"weights": name, "revision": None}
        return make("gold", row.ready, f"{path}_{at.preference.rewarded_key}", given)
    if row.judged:
        assert judging is not None, f"{at.cell.id}: its gold reward is judged, and its scale names no prompts for it"
        given = {"data": judging.data, "revision": judging.revision, "content": content_of(judging.data)}
        return make("gold", row.ready, path, given | {"prompts": judging.prompts})
    return make("gold", row.ready, path, row.params, **(ratings if row.learns_from_ratings else {}))


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
    if evaluation.judging:
        inputs = {"completions": completions, "votes": votes, **_judged(at, folder, policy, evaluation.judging)}
    else:
        inputs = {**texts, "votes": votes}
    if row.rewards:
        folder = f"{folder}/{at.preference.rewarded_key}"
        inputs["rewards"] = make("rewards", row.rewards, f"{folder}/rewards", {}, **texts)
    if reference is not None:
        inputs |= {"policy": policy, "reference": reference}
    return make("scores", row.scores, f"{folder}/scores", params, **inputs)


def _judged(at: Layout, folder: str, policy: Artifact, judging: Judging) -> dict[str, Artifact]:
    """A policy's answers to the judge's prompts, one each, and what the judge says of them."""
    kind = at.preference.gold_kinds.annotate
    assert kind is not None, at.preference.gold
    answers = sample(at, f"{folder}/answers", policy, Asked("answers", at.gold, ("test",), 1, judging.decoding))
    annotations = make(
        "annotations", kind, f"{folder}/annotations", {"judge": judging.judge}, answers=answers, gold=at.gold
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
