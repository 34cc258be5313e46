"""Conversion of scores to training pairs and votes, by the same rules for every oracle."""

from collections.abc import Mapping, Sequence

import numpy as np

from stagealign.base.errors import BadData
from stagealign.data.records import Candidate, CandidateKey, Drops, Pair, by_prompt, prompt_hash
from stagealign.scoring.contest import Judged, answer
from stagealign.stats.votes import cross_votes, pair_votes, top_vote
from stagealign.store.artifact import Facts

Scores = Mapping[CandidateKey, float]
"""Oracle score by candidate, higher is better; comparable among the candidates of one prompt only."""


def unusable(first: Candidate, second: Candidate) -> str | None:
    """Reason why two candidates are no training pair; None if they are one."""
    if not first.completion or not second.completion:
        return "empty completion"
    if not (answer(first).finished and answer(second).finished):
        return "a completion ends inside its reasoning"
    return "chosen equals rejected" if first.completion == second.completion else None


def to_pairs(
    candidates: Sequence[Candidate], scores: Scores, where: str, part: bool = False
) -> tuple[list[Pair], Facts]:
    """(pairs, facts): the better of a prompt's two candidates is chosen; a tie goes to the second, as in the paper.

    Pairs that are `unusable` are dropped and counted; their candidates need no score. `where`: name of the file, for
    errors. Raises BadData if no pair is left, unless the candidates are a `part` of a round's candidates.

    Source: the authors' labelling script.
    """
    pairs, drops, ties = [], Drops(), 0
    groups = by_prompt(candidates)
    for first, second in groups.values():
        reason = unusable(first, second)
        if reason:
            drops[reason] += 1
            continue
        margin = scores[first.key] - scores[second.key]
        ties += margin == 0
        pairs.append(_pair(first, second, margin) if margin > 0 else _pair(second, first, margin))
    drops.check(len(groups), len(pairs))
    if not pairs and not part:
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "the file is empty"
        raise BadData(
            f"{where}: no usable pair among {len(groups)} prompts "
            f"({reasons}); check the candidates and the policy that wrote them"
        )
    return pairs, {
        "pairs": len(pairs),
        "ties": ties,
        "margin": round(float(np.mean([pair.margin for pair in pairs])), 4) if pairs else None,
        "truncated": sum(pair.chosen_truncated + pair.rejected_truncated for pair in pairs),
        "drops": dict(drops),
    }


def _pair(chosen: Candidate, rejected: Candidate, margin: float) -> Pair:
    return Pair(
        chosen.prompt,
        chosen.completion,
        rejected.completion,
        chosen.source,
        abs(margin),
        chosen.truncated,
        rejected.truncated,
        chosen.sampled,
        rejected.sampled,
    )


def to_votes(prompt: str, verdict: Judged) -> Mapping[str, str | float]:
    """Row of `votes.jsonl` for one prompt: votes of its on-policy and static candidates.

    Votes come from the pairs of the verdict (`won`) if it has any, else from its scores.
    """
    votes_on, votes_off, ties = pair_votes(verdict.won) if verdict.won else cross_votes(verdict.on, verdict.off)
    top_on, top_off = top_vote(verdict.on, verdict.off)
    return {
        "prompt": prompt_hash(prompt),
        "on": votes_on,
        "off": votes_off,
        "ties": ties,
        "top_on": top_on,
        "top_off": top_off,
    }
