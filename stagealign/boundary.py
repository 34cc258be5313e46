"""The boundary meter's arithmetic: votes of one prompt, score over prompts, and a decision with a guarantee.

Boundary score = V_on / (V_on + V_off), the share of votes that the policy's own candidates win. Below 0.5 the policy
is in the preference injection stage (collect off-policy data next), from 0.5 on in the preference fine-tuning stage
(on-policy data). Votes of one prompt hang together, so prompts are what is counted: they are the clusters of the
interval and the looks of the decision.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagealign.errors import BadData
from stagealign.statistics import t_quantile

Stage = Literal["injection", "fine-tuning", "undecided"]
Array = NDArray[np.float64]

BOUNDARY = 0.5
PSEUDO_PROMPTS = 0.5
"""Prompts of one vote each by which the interval's design effect is drawn towards 1; see `boundary_score`."""

BETS: Array = np.array([0.7 / 2**halvings for halvings in range(8)])
"""Shares of the largest admissible bet that the decision plays side by side."""
SHARES: Array = np.array([0.35, 0.35, 0.15, 0.07, 0.04, 0.02, 0.01, 0.01])
"""Capital given to each of `BETS`: most to those that suit gaps of 0.1 to 0.25; the rest keep small gaps decidable."""


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
    """Of `score`, prompts as clusters; None for a single prompt. 0 where all prompts voted alike: use `interval`."""
    interval: tuple[float, float]
    """95%, for a number of prompts fixed beforehand; under a look after every prompt use `Decision.interval`."""
    prompts: int
    votes_on: float
    votes_off: float

    @property
    def stage(self) -> Stage:
        """Stage that the whole interval names, `undecided` where 0.5 is inside it."""
        return _stage(self.interval)


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
            _valid(on, off)
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


class Decision:
    """Names the stage as soon as the votes allow, with a bound on ever naming the wrong one, however often one looks.

    Two gamblers bet prompt by prompt, one that the score is above a value m, one that it is below. A prompt multiplies
    the first one's capital by 1 + c * (on / (m * most) - all / most), with on of all votes won and a bet c in (0, 1);
    `off` and 1 - m take the places of `on` and m for the second. If the score is m, this has mean 1 and stays above 0,
    so the capital is a nonnegative martingale, so is the mean over fixed `BETS`, and it ever reaches 1 / alpha with
    probability at most alpha (Ville). The values m at which a gambler has reached 1 / alpha are ruled out for good.
    Capital is monotone in m, so what is left is an interval: a confidence sequence.

    Each end of `interval` misses the score at some look with probability at most alpha, both ends together 2 alpha.
    The stage is named when 0.5 is ruled out. Of the two names only one is wrong, and one end only can be to blame:
    the wrong stage is ever named with probability at most alpha, so alpha is not halved here. (For an interval whose
    two ends hold together with 95%, pass alpha=0.025.)

    This holds for any law of the votes, if prompts come in an order that has nothing to do with them (shuffle sorted
    data first) and `most_votes` is fixed beforehand. Unequal votes a prompt are fine: the target is the ratio of sums.

    Source: Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting" (arXiv 2010.09686),
    section 4 and Theorem 3 (hedged capital). Deviations: bets are a fixed mixture instead of a predictable plug-in, and
    alpha is not split between the two capitals (see above). Their library (confseq 0.0.11) calls itself unstable,
    names no Python above 3.10 and needs a C++ compiler and Boost to install: hence these lines.
    """

    def __init__(self, most_votes: float, alpha: float = 0.05):
        """`most_votes`: most that a prompt of this stream can cast (4 for two candidates a source, 1 for top votes)."""
        if not most_votes > 0 or not math.isfinite(most_votes):
            raise ValueError(f"most_votes {most_votes!r}: not a positive number; 4 for 2 x 2 cross votes, 1 for top")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha!r}: not between 0 and 1; 0.05 for a decision at 95%")
        self.alpha = alpha
        self.most_votes = most_votes
        self.prompts = 0
        self.interval: tuple[float, float] = (0.0, 1.0)
        """Scores that no look so far has ruled out."""
        self.consistent = True
        """False once the looks have ruled out every score: rare by chance, a mark of prompts in a sorted order."""
        self._seen: Counter[tuple[float, float]] = Counter()

    @property
    def stage(self) -> Stage:
        """The stage named, once and for good; `undecided` while 0.5 has not been ruled out."""
        return _stage(self.interval)

    @property
    def score(self) -> float:
        """Boundary score of the prompts so far; NaN before the first."""
        on = sum(on * count for (on, _), count in self._seen.items())
        off = sum(off * count for (_, off), count in self._seen.items())
        return on / (on + off) if self.prompts else math.nan

    def update(self, votes_on: float, votes_off: float) -> Stage:
        """Stage after one more prompt, in the order in which prompts were measured.

        Raises BadData for a prompt without votes, or with more than `most_votes`.
        """
        on, off = _valid(votes_on, votes_off)
        if on + off > self.most_votes * (1 + 1e-9):
            raise BadData(f"votes ({on:g}, {off:g}): more than most_votes={self.most_votes:g}, which was fixed first")
        self._seen[on, off] += 1
        self.prompts += 1
        seen, counts = self._table()
        low, high = self.interval
        low = 1 - self._bound(seen[:, ::-1], counts, 1 - low)
        high = self._bound(seen, counts, high)
        if low <= high:
            self.interval = (low, high)
        else:
            self.consistent = False
        return self.stage

    def prompts_needed(self) -> int | None:
        """Number of prompts, those so far included, that would name a stage if all to come voted as those so far.

        It is as rough as the gap between the score so far and 0.5, and grows as one over its square. None where no
        number would do: no votes yet, or no gap. At most the prompts seen once the stage has been named.
        """
        if not self.prompts:
            return None
        seen, counts = self._table()
        rates = np.tensordot(counts / self.prompts, log_payoffs(seen, self.most_votes), axes=1)  # [side, bet]
        goal = math.log(1 / self.alpha)
        if rates.max() <= 0:
            return None

        def enough(prompts: int) -> bool:
            return bool(_log_capital(prompts * rates).max() >= goal)

        above = 1
        while not enough(above):
            above *= 2
        below = above // 2
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (below, middle) if enough(middle) else (middle, above)
        return above

    def _table(self) -> tuple[Array, Array]:
        """Distinct votes [k, 2] and how many prompts cast each [k]."""
        return np.array(list(self._seen)), np.array(list(self._seen.values()), dtype=float)

    def _bound(self, seen: Array, counts: Array, high: float) -> float:
        """Least score in [0, `high`] that betting below it rules out, or `high`; with swapped votes, the other end."""
        goal = math.log(1 / self.alpha)

        def ruled_out(score: float) -> bool:
            below = log_payoffs(seen, self.most_votes, score)[:, 1]
            return bool(_log_capital(counts @ below) >= goal)

        low = 0.0
        if high < 1 and not ruled_out(high):
            return high
        middle = BOUNDARY  # looked at first and exactly: the stage hangs on it
        if not low < middle < high:
            middle = high / 2
        while high - low > 1e-7:
            low, high = (low, middle) if ruled_out(middle) else (middle, high)
            middle = (low + high) / 2
        return high


def log_payoffs(votes: ArrayLike, most_votes: float, score: float = BOUNDARY) -> Array:
    """Logs [..., 2, bets] of what a prompt's votes [..., 2] multiply the capitals by that bet above and below `score`.

    `score` lies strictly between 0 and 1. See `Decision` for the bets and their source.
    """
    votes = np.asarray(votes, dtype=float)
    gains = votes / np.array([score, 1 - score]) - votes.sum(-1, keepdims=True)
    return np.asarray(np.log1p(gains[..., None] / most_votes * BETS))


def first_decisions(votes: ArrayLike, most_votes: float, alpha: float = 0.05) -> tuple[NDArray[np.int64], Array]:
    """For streams of votes [streams, prompts, 2]: the prompt (from 1) at which `Decision` names a stage, and its sign.

    0 and 0.0 where a stream ends undecided; the sign is 1.0 for `fine-tuning`, -1.0 for `injection`. Same arithmetic
    as `Decision`, all streams at once, in memory for streams * prompts * 16 numbers.
    """
    capital = _log_capital(np.cumsum(log_payoffs(votes, most_votes), axis=1))  # [streams, prompts, side]
    reached = capital >= math.log(1 / alpha)
    ever = reached.any((1, 2))
    at = reached.any(2).argmax(1)
    sign = np.where(reached[np.arange(len(at)), at, 0], 1.0, -1.0)
    return np.where(ever, at + 1, 0), np.where(ever, sign, 0.0)


def _log_capital(log_bets: Array) -> Array:
    """Log of the capital that was shared over bets, from each bet's own log [..., bets]."""
    largest = log_bets.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(log_bets - largest) @ SHARES) + largest[..., 0])


def _stage(interval: tuple[float, float]) -> Stage:
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


def _valid(on: float, off: float) -> tuple[float, float]:
    if not (on >= 0 and off >= 0 and 0 < on + off < math.inf):
        raise BadData(f"votes ({on!r}, {off!r}): not a share of at least one vote; leave a prompt without votes out")
    return float(on), float(off)
