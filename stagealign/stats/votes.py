"""The boundary meter's arithmetic: votes of one prompt, score over prompts, and a decision with a guarantee.

Boundary score = V_on / (V_on + V_off), the share of votes that the policy's own candidates win. Below 0.5 the policy
is in the preference injection stage (collect off-policy data next), from 0.5 on in the preference fine-tuning stage
(on-policy data). Votes of one prompt hang together, so prompts are what is counted: they are the clusters of the
interval and the looks of the decision.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagealign.base.errors import BadData
from stagealign.stats.statistics import t_quantile

Stage = Literal["injection", "fine-tuning", "undecided"]
Array = NDArray[np.float64]
BOUNDARY = 0.5
PSEUDO_PROMPTS = 0.5
"""Prompts of one vote each by which the interval's design effect is drawn towards 1; see `boundary_score`."""


def cross_votes(on: Sequence[float], off: Sequence[float]) -> tuple[float, float, int]:
    """(votes for on, votes for off, ties) of one prompt over all `len(on) * len(off)` comparisons across sources.

    The higher score wins a comparison; equal scores tie, and a tie counts half to each side, so
    `votes_on + votes_off == len(on) * len(off)` always. Raises BadData for a source without a score or with NaN.
    Source: arXiv 2508.10530, Algorithm 1 (reading of the votes: ours, the paper's is not found).
    """
    a, b = _scores(on, "on"), _scores(off, "off")
    ties = int((a[:, None] == b[None, :]).sum())
    votes_on = float((a[:, None] > b[None, :]).sum()) + ties / 2
    return votes_on, a.size * b.size - votes_on, ties


def pair_votes(won: Sequence[float]) -> tuple[float, float, int]:
    """(votes for on, votes for off, ties) of one prompt whose comparisons across sources were each asked for.

    `won`: by how much the on-policy candidate of each pair was preferred, in [0, 1]; above a half is its vote, a half
    ties and counts half to each side. Unlike scores, pairs may go in a circle. Raises BadData for none, or one outside
    [0, 1].
    """
    array = _scores(won, "pairs")
    if not ((array >= 0) & (array <= 1)).all():
        raise BadData(f"shares of pairs won {list(won)}: outside of 0 to 1")
    ties = int((array == 0.5).sum())
    votes_on = float((array > 0.5).sum()) + ties / 2
    return votes_on, array.size - votes_on, ties


def top_vote(on: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """(vote for on, vote for off) of one prompt: one vote, to the source of its best candidate.

    A tie for the best across the two sources counts half to each; a tie within a source changes nothing. Raises
    BadData for a source without a score or with NaN. It is a fair reading only for equally many candidates a source.
    """
    best_on, best_off = _scores(on, "on").max(), _scores(off, "off").max()
    if best_on == best_off:
        return 0.5, 0.5
    return (1.0, 0.0) if best_on > best_off else (0.0, 1.0)


def stage_of(score: float) -> Stage:
    """Stage by the paper's point rule: `injection` below 0.5, else `fine-tuning`; it knows no doubt.

    Source: arXiv 2508.10530, Table 3 (BS < 0.5 is preference injection).
    """
    return "injection" if score < BOUNDARY else "fine-tuning"


@dataclass(frozen=True)
class BoundaryScore:
    """Share of votes won on-policy, with the doubt that its prompts leave."""

    score: float
    """In [0, 1]."""
    standard_error: float | None
    """Standard error of `score`, prompts as clusters; None for one prompt, 0 if all voted alike: use `interval`."""
    interval: tuple[float, float]
    """95%, for a number of prompts fixed beforehand; under a look after every prompt use `Decision.interval`."""
    prompts: int
    votes_on: float
    votes_off: float

    @property
    def stage(self) -> Stage:
        """Stage that the whole interval names, `undecided` where 0.5 is inside it."""
        return stage_by(self.interval)


def boundary_score(votes: Sequence[tuple[float, float]] | Array) -> BoundaryScore:
    """Boundary score of one (votes for on, votes for off) a prompt, with its 95% interval over prompts.

    The interval is Wilson's for n / d prompts of one vote each and t quantiles of n - 1 degrees. d is the design
    effect: the variance of the score between prompts over that of single votes, score * (1 - score) / n; four
    independent votes have 0.25, four that always agree 1. Where score or n is small the variance between prompts is
    found too small or even 0 and the usual score +- t * error misses far too often (2% instead of 95% coverage has
    been seen), so d is estimated together with half a prompt of design effect 1: it fades as the votes come in and
    leaves an interval of positive width, inside [0, 1], when all prompts vote alike. `python -m benchmarks.boundary`
    prints the coverage. Prompts with more votes weigh more, as in the paper's ratio of sums.

    Raises BadData for no prompts, or a prompt with a negative number of votes or none at all (a prompt that failed is
    counted by who asked it and left out here).
    Source: Wilson 1927; effective sample size in it: Korn and Graubard 1998 (Survey Methodology 24), whose exact
    binomial limits are replaced by Wilson's; the pseudo-prompt is ours.
    """
    if len(votes) == 0:
        raise BadData("votes: none; a boundary score needs one prompt with candidates from both sources")
    table = np.asarray(votes, dtype=float)
    if not ((table >= 0).all() and (table.sum(1) > 0).all() and np.isfinite(table).all()):
        for on, off in votes:
            valid_votes(on, off)
    n, total = len(table), float(table.sum())
    score = float(table[:, 0].sum()) / total
    squares = float(((table[:, 0] - score * table.sum(1)) ** 2).sum() / (total / n) ** 2)
    if n == 1:
        return BoundaryScore(score, None, (0.0, 1.0), 1, float(table[0, 0]), float(table[0, 1]))
    binary, pseudo = (n - 1) * score * (1 - score), PSEUDO_PROMPTS / 4
    design = (squares + pseudo) / (binary + pseudo)
    t2 = t_quantile(n - 1) ** 2 * design / n
    middle = (score + t2 / 2) / (1 + t2)
    half = math.sqrt(t2 * score * (1 - score) + t2**2 / 4) / (1 + t2)
    interval = (max(0.0, min(score, middle - half)), min(1.0, max(score, middle + half)))
    error = math.sqrt(squares / (n - 1) / n)
    return BoundaryScore(score, error, interval, n, float(table[:, 0].sum()), float(table[:, 1].sum()))


def stage_by(interval: tuple[float, float]) -> Stage:
    """Stage of an interval whose ends do not belong to it: one that ends at 0.5 has ruled 0.5 out."""
    if interval[0] >= BOUNDARY:
        return "fine-tuning"
    return "injection" if interval[1] <= BOUNDARY else "undecided"


def _scores(scores: Sequence[float], source: str) -> Array:
    array = np.asarray(scores, dtype=float)
    if array.size == 0 or np.isnan(array).any():
        found = "none" if array.size == 0 else f"{int(np.isnan(array).sum())} of {array.size} not a number"
        raise BadData(f"scores of {source}: {found}; count this prompt as dropped and leave it out")
    return array


def valid_votes(on: float, off: float) -> tuple[float, float]:
    """(votes for on, votes for off) of one prompt, checked. Raises BadData for a negative number, or none at all."""
    if not (on >= 0 and off >= 0 and 0 < on + off < math.inf):
        raise BadData(f"votes ({on!r}, {off!r}): not a share of at least one vote; leave a prompt without votes out")
    return float(on), float(off)
