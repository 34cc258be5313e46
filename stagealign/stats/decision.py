"""An anytime-valid decision between the two stages, and an interval that holds at every look."""

import math
from collections import Counter

import numpy as np
from numpy.typing import ArrayLike

from stagealign.base.errors import BadData
from stagealign.stats.votes import BOUNDARY, SAME, Array, Stage, valid_votes

BETS: Array = np.array([0.97, 0.88, 0.75, 0.6, 0.45, 0.35, 0.25, 0.19, 0.14, 0.1, 0.07, 0.045, 0.02, 0.008])
"""Shares of the largest admissible bet that the decision plays side by side."""
SHARES: Array = np.array([0.05, 0.24, 0.12, 0.07, 0.07, 0.06, 0.1, 0.14, 0.04, 0.04, 0.05, 0.01, 0.006, 0.004])
"""Capital given to each of `BETS`, chosen by simulation so that at gaps of 0.05 to 0.25 from 0.5 the mean number of
prompts stays within 1.3 of what a test that knows the votes' distribution needs, log(1 / alpha) / KL; the last three
keep smaller gaps decidable. Any fixed shares that sum to 1 keep the guarantee."""


class Decision:
    """Names the stage as soon as the votes allow. The probability of ever giving a wrong answer is at most `alpha`.

    Two gamblers bet prompt by prompt, one that the score is above a value m, one that it is below. A prompt multiplies
    the first one's capital by 1 + c * (on / (m * most) - all / most), with on of all votes won and a bet c in (0, 1);
    `off` and 1 - m take the places of `on` and m for the second. If the score is m, this has mean 1 and stays above 0,
    so the capital is a nonnegative martingale, so is the mean over fixed `BETS`, and it ever reaches 1 / a with
    probability at most a (Ville's inequality). The values m at which a gambler has reached 1 / a are ruled out for
    good at level a. Capital is monotone in m, so what is left is an interval: a confidence sequence.

    - `interval`: a is `alpha` / 2 at each end, so both ends together hold at every look with 1 - `alpha`.
    - `stage`: named when 0.5 is ruled out at `alpha`. Only one of the two stages is wrong and only one end can name
      it, so alpha is not halved here. The interval is therefore a little wider than the stage needs, and may still
      contain 0.5 when the stage is named.
    - with an indifference zone of G, `stage` is "no practical difference" when `interval` lies in 0.5 +- G, if this
      happens before a stage is named. It is wrong only if the score is at least G away from 0.5, and then the end
      that misses it is the end that would name the wrong stage, so all wrong answers together still have
      probability at most `alpha`.

    This holds for any distribution of the votes, if the order of prompts is independent of them (shuffle sorted data
    first) and `most_votes` is fixed beforehand. Prompts may cast unequal votes: the target is the ratio of sums.

    Sources: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting" (JRSS-B 86, arXiv
    2010.09686), section 4 and Theorem 3 (hedged capital); the fixed mixture is Robbins 1970 ("Statistical methods
    related to the law of the iterated logarithm"); one-sided sequences as in Howard et al. 2021 ("Time-uniform,
    nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49); two one-sided tests for equivalence:
    Schuirmann 1987. Deviations: bets are a fixed mixture instead of a predictable plug-in. The confseq library (0.0.11)
    calls itself unstable, names no Python above 3.10 and needs a C++ compiler and Boost, so it is not used.
    """

    def __init__(self, most_votes: float, alpha: float = 0.05, indifference: float | None = None):
        """`most_votes`: maximum votes of one prompt of this stream (4 for two candidates a source, 1 for top votes).

        `indifference`: half-width G of the zone around 0.5 in which the difference does not matter; None for none.
        """
        if not most_votes > 0 or not math.isfinite(most_votes):
            raise ValueError(f"most_votes {most_votes!r}: not a positive number; 4 for 2 x 2 cross votes, 1 for top")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha!r}: not between 0 and 1; 0.05 for a decision at 95%")
        if indifference is not None and not 0 < indifference < BOUNDARY:
            raise ValueError(f"indifference {indifference!r}: not between 0 and 0.5; 0.05 for scores of 0.45 to 0.55")
        self.alpha = alpha
        self.most_votes = most_votes
        self.indifference = indifference
        self.prompts = 0
        self.interval: tuple[float, float] = (0.0, 1.0)
        """Scores that no look so far has ruled out at `alpha` / 2 an end."""
        self.consistent = True
        """False once every score is ruled out. This is rare by chance and a sign of prompts in a sorted order."""
        self.stage: Stage = "undecided"
        """Answer by the votes so far, final once given."""
        self.decided_at: int | None = None
        """Number of prompts after which the answer was given; None if it was not."""
        self._seen: Counter[tuple[float, float]] = Counter()

    @property
    def score(self) -> float:
        """Share of votes won over the prompts so far, inflated by an early stop; NaN before the first prompt."""
        on = sum(on * count for (on, _), count in self._seen.items())
        off = sum(off * count for (_, off), count in self._seen.items())
        return on / (on + off) if self.prompts else math.nan

    def update(self, votes_on: float, votes_off: float) -> Stage:
        """Answer after one more prompt, in the order in which prompts were measured.

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
        if self.stage == "undecided":
            self.stage = self._answer(seen, counts)
            self.decided_at = None if self.stage == "undecided" else self.prompts
        return self.stage

    def _answer(self, seen: Array, counts: Array) -> Stage:
        """Answer by the interval and the capitals at 0.5 now."""
        zone = self.indifference
        if zone is not None and BOUNDARY - zone <= self.interval[0] and self.interval[1] <= BOUNDARY + zone:
            return SAME
        above, below = _log_capital(np.tensordot(counts, log_payoffs(seen, self.most_votes), axes=1))
        goal = math.log(1 / self.alpha)
        return "fine-tuning" if above >= goal else "injection" if below >= goal else "undecided"

    def prompts_needed(self) -> int | None:
        """Estimated number of prompts, with those so far, that give an answer if later prompts vote as those so far.

        It grows as one over the square of the gap between the score so far and 0.5, or the ends of the indifference
        zone, and is as uncertain as this gap. None before the first vote, or without a gap and a zone. Once a stage is
        named, it is at most the prompts so far.
        """
        if not self.prompts:
            return None
        half, goal, zone = self._rates(BOUNDARY), math.log(1 / self.alpha), self.indifference
        ends: Array | None = None
        if zone is not None:
            ends = np.stack([self._rates(BOUNDARY - zone)[0], self._rates(BOUNDARY + zone)[1]])
        if half.max() <= 0 and (ends is None or ends.max(axis=1).min() <= 0):
            return None

        def enough(prompts: int) -> bool:
            named = _log_capital(prompts * half).max() >= goal
            return bool(named or (ends is not None and _log_capital(prompts * ends).min() >= goal + math.log(2)))

        above = 1
        while not enough(above):
            above *= 2
        below = above // 2
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (below, middle) if enough(middle) else (middle, above)
        return above

    def _rates(self, score: float) -> Array:
        """Mean log payoff of a prompt so far [2, bets], of bets above and below `score`."""
        seen, counts = self._table()
        return np.asarray(np.tensordot(counts / self.prompts, log_payoffs(seen, self.most_votes, score), axes=1))

    def _table(self) -> tuple[Array, Array]:
        """Distinct votes [k, 2], and the number of prompts that cast each [k]."""
        return np.array(list(self._seen)), np.array(list(self._seen.values()), dtype=float)

    def _bound(self, seen: Array, counts: Array, high: float) -> float:
        """Lowest score in [0, `high`] that the bet below it rules out, else `high`; swapped votes: the other end."""
        goal = math.log(2 / self.alpha)

        def ruled_out(score: float) -> bool:
            below = log_payoffs(seen, self.most_votes, score)[:, 1]
            return bool(_log_capital(counts @ below) >= goal)

        low = 0.0
        if high < 1 and not ruled_out(high):
            return high
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


def _log_capital(log_bets: Array) -> Array:
    """Log of the total capital [...], from the log payoff of each bet [..., bets]."""
    largest = log_bets.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(log_bets - largest) @ SHARES) + largest[..., 0])
