"""Scores to training pairs and to votes: the same rules for every oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagealign.base.errors import BadData
from stagealign.data.records import Candidate, Drops, Pair, by_prompt, prompt_hash
from stagealign.stats.votes import cross_votes, top_vote

Scores = Mapping[int, float]
"""Oracle score by `id` of a candidate; they need only be comparable among the candidates of one prompt."""


def unusable(first: Candidate, second: Candidate) -> str | None:
    """Why two candidates cannot teach; None where they can."""
    if not first.completion or not second.completion:
        return "empty completion"
    return "chosen equals rejected" if first.completion == second.completion else None


def to_pairs(
    candidates: Sequence[Candidate], scores: Scores, where: str, part: bool = False
) -> tuple[list[Pair], dict[str, Any]]:
    """(pairs, facts): the better of a prompt's two candidates is chosen; a tie goes to the second, as in the paper.

    Candidates without a score are those that `unusable` names. Pairs that cannot teach are dropped and counted.
    Raises BadData where none is left, unless they are a `part` of a round's; `where` names the file. Source: the
    authors' labelling script.
    """
    pairs, drops, ties = [], Drops(), 0
    groups = by_prompt(candidates)
    for prompt, (first, second) in groups.items():
        reason = unusable(first, second)
        if reason:
            drops[reason] += 1
            continue
        margin = scores[id(first)] - scores[id(second)]
        ties += margin == 0
        chosen, rejected = (first, second) if margin > 0 else (second, first)
        pairs.append(
            Pair(
                prompt,
                chosen.completion,
                rejected.completion,
                chosen.source,
                abs(margin),
                chosen.truncated,
                rejected.truncated,
            )
        )
    drops.check(len(groups), len(pairs))
    if not pairs and not part:
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "the file is empty"
        raise BadData(
            f"{where}: no usable pair among {len(groups)} prompts "
            f"({reasons}); look at the candidates and at the policy that wrote them"
        )
    facts = {
        "pairs": len(pairs),
        "ties": ties,
        "margin": round(float(np.mean([pair.margin for pair in pairs])), 4) if pairs else None,
        "truncated": sum(pair.chosen_truncated + pair.rejected_truncated for pair in pairs),
        "drops": dict(drops),
    }
    return pairs, facts


def to_votes(prompt: str, on: Sequence[float], off: Sequence[float]) -> dict[str, Any]:
    """One prompt's row of `votes.jsonl`: scores of its on-policy against those of its static candidates."""
    votes_on, votes_off, ties = cross_votes(on, off)
    top_on, top_off = top_vote(on, off)
    return {
        "prompt": prompt_hash(prompt),
        "on": votes_on,
        "off": votes_off,
        "ties": ties,
        "top_on": top_on,
        "top_off": top_off,
    }
