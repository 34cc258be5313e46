"""Arithmetic of the boundary meter: the votes of one prompt, and the score over prompts.

Boundary score = V_on / (V_on + V_off), the share of votes that the policy's own candidates win. Below 0.5 the policy
is in the preference injection stage (collect off-policy data next), from 0.5 on in the preference fine-tuning stage
(on-policy data). Votes of one prompt are correlated, so the prompt is the unit: a cluster of the interval, and a
step of the decision.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagealign.base.errors import BadData
from stagealign.stats.statistics import t_quantile

Stage = Literal["injection", "fine-tuning", "no practical difference", "undecided"]
Array = NDArray[np.float64]
SAME: Stage = "no practical difference"
"""Answer of a decision with an indifference zone: the score is nearer to 0.5 than a difference that matters."""
BOUNDARY = 0.5
PSEUDO_PROMPTS = 0.5
"""Number of pseudo-prompts of one vote each that draw the interval's design effect towards 1; see `boundary_score`."""


def cross_votes(on: Sequence[float], off: Sequence[float]) -> tuple[float, float, int]:
    """(votes for on, votes for off, ties) of one prompt over all `len(on) * len(off)` comparisons across sources.

    The higher score wins a comparison; equal scores tie, and a tie counts half to each side, so
    `votes_on + votes_off == len(on) * len(off)` always. Raises BadData for a source without a score or with NaN.
    Source: arXiv 2508.10530, Algorithm 1 (our reading of the votes; the paper's definition was not found).
    """
    a, b = _scores(on, "on"), _scores(off, "off")
    ties = int((a[:, None] == b[None, :]).sum())
    votes_on = float((a[:, None] > b[None, :]).sum()) + ties / 2
    return votes_on, a.size * b.size - votes_on, ties


def pair_votes(won: Sequence[float]) -> tuple[float, float, int]:
    """(votes for on, votes for off, ties) of one prompt, from one comparison per pair across sources.

    `won`: preference for the on-policy candidate of each pair, in [0, 1]. Above 0.5 it wins the vote; 0.5 is a tie and
    counts half to each side. Unlike scores, pairs need not be transitive. Raises BadData for no pair, or a value
    outside [0, 1].
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
    BadData for a source without a score or with NaN. It is fair only if both sources have equally many candidates.
    """
    best_on, best_off = _scores(on, "on").max(), _scores(off, "off").max()
    if best_on == best_off:
        return 0.5, 0.5
    return (1.0, 0.0) if best_on > best_off else (0.0, 1.0)


def stage_of(score: float) -> Stage:
    """Stage by the paper's point rule: `injection` below 0.5, else `fine-tuning`; it ignores uncertainty.

    Source: arXiv 2508.10530, Table 3 (BS < 0.5 is preference injection).
    """
    return "injection" if score < BOUNDARY else "fine-tuning"


@dataclass(frozen=True)
class BoundaryScore:
    """Share of votes won on-policy, with its uncertainty over prompts."""

    score: float
    """In [0, 1]."""
    standard_error: float | None
    """Standard error of `score`, prompts as clusters; None for one prompt, 0 if all voted alike: use `interval`."""
    interval: tuple[float, float]
    """95%, for a number of prompts fixed beforehand; under a look after every prompt use `Decision.interval`. It is
    too narrow if rare prompts vote quite differently and none was seen; see `stats.narrow`."""
    prompts: int
    votes_on: float
    votes_off: float

    @property
    def stage(self) -> Stage:
        """Stage that the whole interval names; `undecided` if 0.5 is inside it."""
        return stage_by(self.interval)


def boundary_score(votes: Sequence[tuple[float, float]] | Array) -> BoundaryScore:
    """Boundary score from (votes for on, votes for off) of each prompt, with its 95% interval over prompts.

    The interval is Wilson's for n / d prompts of one vote each and t quantiles of n - 1 degrees. d is the design
    effect: the variance of the score between prompts over that of single votes, score * (1 - score) / n; four
    independent votes have 0.25, four that always agree 1. If score or n is small, the estimated variance
    between prompts is too small or even 0, and the usual score +- t * error covers far too rarely (2% instead of 95%
    was measured). So d is estimated together with half a pseudo-prompt of design effect 1. Its weight fades with more
    votes; if all prompts vote alike, the interval has a positive width and stays inside [0, 1]. Prompts with more votes
    weigh more, as in the paper's ratio of sums. `python -m benchmarks.boundary` prints the coverage.

    Raises BadData for no prompts, or a prompt with a negative number of votes or none at all. Callers count failed
    prompts and leave them out.
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
    """Stage of an open interval: one that ends at 0.5 rules 0.5 out."""
    if interval[0] >= BOUNDARY:
        return "fine-tuning"
    return "injection" if interval[1] <= BOUNDARY else "undecided"


def _scores(scores: Sequence[float], source: str) -> Array:
    array = np.asarray(scores, dtype=float)
    if array.size == 0 or np.isnan(array).any():
        fault = "none" if array.size == 0 else f"{int(np.isnan(array).sum())} of {array.size} not a number"
        raise BadData(f"scores of {source}: {fault}; count this prompt as dropped and leave it out")
    return array


def valid_votes(on: float, off: float) -> tuple[float, float]:
    """(votes for on, votes for off) of one prompt, checked. Raises BadData for a negative number, or none at all."""
    if not (on >= 0 and off >= 0 and 0 < on + off < math.inf):
        raise BadData(f"votes ({on!r}, {off!r}): a negative number, or no finite sum above 0; leave this prompt out")
    return float(on), float(off)
