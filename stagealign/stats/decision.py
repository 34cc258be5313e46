"""An anytime-valid decision between the two stages."""

import math
from collections import Counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagealign.base.errors import BadData
from stagealign.stats.votes import BOUNDARY, Array, Stage, stage_by, valid_votes

BETS: Array = np.array([0.7 / 2**halvings for halvings in range(8)])
"""Shares of the largest admissible bet that the decision plays side by side."""
SHARES: Array = np.array([0.35, 0.35, 0.15, 0.07, 0.04, 0.02, 0.01, 0.01])
"""Capital given to each of `BETS`: most to those that suit gaps of 0.1 to 0.25; the rest keep small gaps decidable."""


class Decision:
    """Names the stage as soon as the votes allow. The probability of ever naming the wrong one is at most `alpha`.

    Two gamblers bet prompt by prompt, one that the score is above a value m, one that it is below. A prompt multiplies
    the first one's capital by 1 + c * (on / (m * most) - all / most), with on of all votes won and a bet c in (0, 1);
    `off` and 1 - m take the places of `on` and m for the second. If the score is m, this has mean 1 and stays above 0,
    so the capital is a nonnegative martingale, so is the mean over fixed `BETS`, and it ever reaches 1 / alpha with
    probability at most alpha (Ville). The values m at which a gambler has reached 1 / alpha are ruled out for good.
    Capital is monotone in m, so what is left is an interval: a confidence sequence.

    Each end of `interval` misses the score at some look with probability at most alpha, both ends together 2 alpha.
    The stage is named when 0.5 is ruled out. Only one of the two stages is wrong, and only one end can name it:
    the wrong stage is ever named with probability at most alpha, so alpha is not halved here. (For an interval whose
    two ends hold together with 95%, pass alpha=0.025.)

    This holds for any distribution of the votes, if the order of prompts is independent of them (shuffle sorted data
    first) and `most_votes` is fixed beforehand. Prompts may cast unequal votes: the target is the ratio of sums.

    Source: Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting" (arXiv 2010.09686),
    section 4 and Theorem 3 (hedged capital). Deviations: bets are a fixed mixture instead of a predictable plug-in, and
    alpha is not split between the two capitals (see above). Their library (confseq 0.0.11) calls itself unstable,
    names no Python above 3.10 and needs a C++ compiler and Boost to install, so the method is written out here.
    """

    def __init__(self, most_votes: float, alpha: float = 0.05):
        """`most_votes`: maximum votes of one prompt of this stream (4 for two candidates a source, 1 for top votes)."""
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
        """False once every score is ruled out. This is rare by chance and a sign of prompts in a sorted order."""
        self._seen: Counter[tuple[float, float]] = Counter()

    @property
    def stage(self) -> Stage:
        """Stage by the votes so far, final once named; `undecided` until 0.5 is ruled out."""
        return stage_by(self.interval)

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
        on, off = valid_votes(votes_on, votes_off)
        if on + off > self.most_votes * (1 + 1e-9):
            raise BadData(
                f"votes ({on:g}, {off:g}): more than most_votes={self.most_votes:g}, which is fixed beforehand"
            )
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
        """Estimated number of prompts, with those so far, that names a stage if later prompts vote as those so far.

        It grows as one over the square of the gap between the score so far and 0.5, and is as uncertain as this gap.
        None before the first vote, or without a gap. Once a stage is named, it is at most the prompts so far.
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
        """Distinct votes [k, 2], and the number of prompts that cast each [k]."""
        return np.array(list(self._seen)), np.array(list(self._seen.values()), dtype=float)

    def _bound(self, seen: Array, counts: Array, high: float) -> float:
        """Lowest score in [0, `high`] that the bet below it rules out, else `high`; swapped votes: the other end."""
        goal = math.log(1 / self.alpha)

        def ruled_out(score: float) -> bool:
            below = log_payoffs(seen, self.most_votes, score)[:, 1]
            return bool(_log_capital(counts @ below) >= goal)

        low = 0.0
        if high < 1 and not ruled_out(high):
            return high
        middle = BOUNDARY  # tested first and exactly, as the stage depends on it
        if not low < middle < high:
            middle = high / 2
        while high - low > 1e-7:
            low, high = (low, middle) if ruled_out(middle) else (middle, high)
            middle = (low + high) / 2
        return high


def log_payoffs(votes: ArrayLike, most_votes: float, score: float = BOUNDARY) -> Array:
    """Logs [..., 2, bets] of the factors by which votes [..., 2] multiply the capitals bet above and below `score`.

    `score` lies strictly between 0 and 1. See `Decision` for the bets and their source.
    """
    votes = np.asarray(votes, dtype=float)
    gains = votes / np.array([score, 1 - score]) - votes.sum(-1, keepdims=True)
    return np.asarray(np.log1p(gains[..., None] / most_votes * BETS))


def first_decisions(votes: ArrayLike, most_votes: float, alpha: float = 0.05) -> tuple[NDArray[np.int64], Array]:
    """Prompt (from 1) at which `Decision` names a stage and the stage's sign, for votes [streams, prompts, 2].

    The sign is 1.0 for `fine-tuning`, -1.0 for `injection`; both numbers are 0 for a stream that ends undecided. The
    arithmetic is that of `Decision` for all streams at once, with streams * prompts * 16 numbers in memory.
    """
    capital = _log_capital(np.cumsum(log_payoffs(votes, most_votes), axis=1))  # [streams, prompts, side]
    reached = capital >= math.log(1 / alpha)
    ever = reached.any((1, 2))
    at = reached.any(2).argmax(1)
    sign = np.where(reached[np.arange(len(at)), at, 0], 1.0, -1.0)
    return np.where(ever, at + 1, 0), np.where(ever, sign, 0.0)


def _log_capital(log_bets: Array) -> Array:
    """Log of the total capital [...], from the log payoff of each bet [..., bets]."""
    largest = log_bets.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(log_bets - largest) @ SHARES) + largest[..., 0])
