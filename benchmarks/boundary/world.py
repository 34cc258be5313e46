"""Simulated world with a known boundary score: every distribution is a table, so the true score is an exact sum.

Each prompt is of one of a few kinds, which the meter does not see; a kind sets how well the policy does (difficulty).
Completions are a finite set with known rewards, which are the log of the ground-truth distribution pi_G up to a
constant: the Bradley-Terry bijection between preferences and pi_G. The policy and the static source are
distributions over the same set. The oracle sees the exact reward; drawing one completion twice is a tie.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CORRELATION = 1 / 3
"""Correlation of two votes of a prompt (2 x 2 cross votes). On AlpacaEval's recorded preferences it is about 0.3, if
two sibling models stand for a policy's two samples; candidates that do not depend on the prompt have about 0.2."""


@dataclass(frozen=True, eq=False)
class World:
    """Policy, static source and pi_G as exact distributions over one set of completions."""

    rewards: Array
    """[completions]: log pi_G up to a constant, in nats, ascending."""
    policy: Array
    """[kinds, completions]: probabilities, rows sum to 1."""
    static: Array
    """[completions]: probabilities of the static source."""
    kinds: Array
    """[kinds]: share of prompts of each kind."""

    @cached_property
    def ground_truth(self) -> Array:
        """pi_G [completions]."""
        weights = np.exp(self.rewards - self.rewards.max())
        return np.asarray(weights / weights.sum())

    @cached_property
    def _wins(self) -> Array:
        """[completions]: chance that each beats one draw of the static source, a tie counted as half."""
        reward, static = self.rewards, self.static
        return np.asarray(((reward[:, None] > reward) + 0.5 * (reward[:, None] == reward)) @ static)

    @cached_property
    def cross_score(self) -> float:
        """True boundary score by cross votes, exact."""
        return float(self.kinds @ self.policy @ self._wins)

    def top_score(self, candidates: int = 2) -> float:
        """True boundary score by one vote a prompt, to the best of `candidates` a source; exact."""
        values, place = np.unique(self.rewards, return_inverse=True)
        policy = np.stack([np.bincount(place, row, len(values)) for row in self.policy])
        best_on = np.diff(np.cumsum(policy, axis=1) ** candidates, axis=1, prepend=0)  # [kinds, rewards]
        below = np.cumsum(np.bincount(place, self.static, len(values))) ** candidates
        best_off = np.diff(below, prepend=0)
        return float(self.kinds @ best_on @ (below - best_off / 2))

    @cached_property
    def vote_variance(self) -> float:
        """Variance over prompts of the share of 2 x 2 cross votes that the policy wins; exact."""
        reward = self.rewards
        vote = (reward[:, None] > reward) + 0.5 * (reward[:, None] == reward)  # [on, off]
        same_pair = self.policy @ vote**2 @ self.static
        same_on = self.policy @ self._wins**2
        same_off = (self.policy @ vote) ** 2 @ self.static
        none_shared = (self.policy @ self._wins) ** 2
        # Of 16 ordered pairs of votes 4 are one vote twice; 4 share the on-policy candidate, 4 the static one.
        second = (same_pair + same_on + same_off + none_shared) / 4
        return float(self.kinds @ second) - self.cross_score**2

    @property
    def correlation(self) -> float:
        """Mean correlation of two different votes of a prompt (2 x 2 cross votes); exact up to ties."""
        return (4 * self.vote_variance / (self.cross_score * (1 - self.cross_score)) - 1) / 3

    @property
    def distances(self) -> tuple[float, float]:
        """KL(pi_G || policy) and KL(pi_G || static) in nats, the policy's averaged over kinds of prompts."""
        truth = self.ground_truth
        policy = self.kinds @ np.sum(truth * np.log(truth / self.policy), axis=1)
        return float(policy), float(np.sum(truth * np.log(truth / self.static)))

    def mirrored(self) -> "World":
        """World with all rewards negated, in which a score s becomes 1 - s."""
        return replace(self, rewards=-self.rewards[::-1], policy=self.policy[:, ::-1], static=self.static[::-1])

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], candidates: int = 2) -> tuple[Array, Array]:
        """Rewards (on, off), each `[*shape, candidates]`, of candidates of independent prompts."""
        kind = _draw(rng, self.kinds, shape)
        place = kind[..., None] + rng.random((*shape, candidates))
        ends = np.cumsum(self.policy, axis=1)
        ends = (ends / ends[:, -1:] + np.arange(len(self.kinds))[:, None]).ravel()  # kind k fills (k, k + 1]
        on = np.searchsorted(ends, place, side="right") % len(self.rewards)
        return self.rewards[on], self.rewards[_draw(rng, self.static, (*shape, candidates))]

    def votes(self, rng: np.random.Generator, shape: tuple[int, ...], reading: str = "cross") -> Array:
        """Votes `[*shape, 2]` (on, off) of independent prompts with two candidates a source.

        `reading` is `cross` (four votes a prompt, as `stats.votes.cross_votes`) or `top` (one vote, between the best
        candidates). Raises ValueError for another reading.
        """
        if reading not in ("cross", "top"):
            raise ValueError(f"reading {reading!r}: unknown; one of 'cross', 'top'")
        on, off = self.sample(rng, shape)
        if reading == "top":
            on, off = on.max(-1, keepdims=True), off.max(-1, keepdims=True)
        on, off = on[..., :, None], off[..., None, :]
        won = ((on > off) + 0.5 * (on == off)).sum((-1, -2))
        return np.stack([won, on.shape[-2] * off.shape[-1] - won], axis=-1)


def make_world(tilt: float, spread: float = 0.0, completions: int = 64, kinds: int = 21) -> World:
    """World with a uniform static source and a policy whose log-probs rise by `tilt` nats for each unit of quality.

    Quality is standard normal over completions; for pi_G the tilt is 3. A prompt's kind adds to the tilt: normal with
    standard deviation `spread`, in `kinds` equal shares.
    """
    quality, difficulty = _normal(completions), _normal(kinds)
    lean = np.exp((tilt + spread * difficulty)[:, None] * quality)
    policy = lean / lean.sum(axis=1, keepdims=True)
    static = np.full(completions, 1 / completions)
    return World(3 * quality, policy, static, np.full(kinds, 1 / kinds))


def world_at(score: float, correlation: float | None = CORRELATION) -> World:
    """World with this true boundary score (cross votes) and this correlation between the votes of a prompt.

    Both are exact to 1e-9. `correlation` None leaves the policy equally good on all prompts. Raises ValueError if
    `score` is outside [0.05, 0.95], or the correlation is below that of shared candidates (about 0.2) or too large.
    """
    if not 0.05 <= score <= 0.95:
        raise ValueError(f"score {score!r}: no world with it; take one from 0.05 to 0.95")

    def tilted(spread: float) -> World:
        tilt = _solve(lambda tilt: make_world(tilt, spread).cross_score - score, -8.0, 8.0)
        return make_world(tilt, spread)

    plain = tilted(0.0)
    if correlation is None:
        return plain
    widest = tilted(3.0)
    if not plain.correlation <= correlation <= widest.correlation:
        raise ValueError(
            f"correlation {correlation!r}: no world with it at score {score}; take one from "
            f"{plain.correlation:.3f} to {widest.correlation:.3f}, or None for the lowest"
        )
    return tilted(_solve(lambda spread: tilted(spread).correlation - correlation, 0.0, 3.0))


def _solve(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of an increasing function between `low` and `high`."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2


def _normal(count: int) -> Array:
    """`count` equally likely values of a standard normal variable, ascending."""
    return np.array([NormalDist().inv_cdf((place + 0.5) / count) for place in range(count)])


def _draw(rng: np.random.Generator, probabilities: Array, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Places drawn with `probabilities`."""
    ends = np.cumsum(probabilities)
    return np.searchsorted(ends / ends[-1], rng.random(shape), side="right")
