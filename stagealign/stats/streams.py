"""Decisions over many streams of votes at once, and an estimate that an early stop does not inflate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagealign.stats.decision import SHARES, Decision, log_payoffs
from stagealign.stats.votes import BOUNDARY, Array

Codes = NDArray[np.int64]
ORDERS = 2000
"""Orders of the prompts that an estimate averages; its error from drawing them is then about 0.003."""
LEAST_ORDERS = 250
STEPS = 16_000_000
"""Most prompts over all orders drawn, a few seconds of work."""


@dataclass(frozen=True)
class Ended:
    """How a measurement in batches ended; numbers of prompts that voted."""

    first: int
    """Prompts of the first batch."""
    before: int
    """Prompts before the last batch; 0 if the first batch was the last."""
    early: bool
    """True if an answer ended it with prompts left, False if the prompts (or the user's patience) ended."""


def first_decisions(
    votes: ArrayLike, most_votes: float, alpha: float = 0.05, indifference: float | None = None
) -> tuple[Codes, Array]:
    """Prompt (from 1) at which `Decision` gives its answer and the sign of it, for votes [streams, prompts, 2].

    The sign is 1.0 for `fine-tuning`, -1.0 for `injection` and 0 for "no practical difference"; both numbers are 0
    for a stream that ends undecided. The arithmetic is that of `Decision` for all streams at once.
    """
    table = np.asarray(votes, dtype=float)
    values, codes = np.unique(table.reshape(-1, 2), axis=0, return_inverse=True)
    return _first(codes.reshape(table.shape[:2]), values, Decision(most_votes, alpha, indifference))


def unstopped_shares(
    votes: Array, wanted: Array, ended: Ended, decision: Decision, orders: int = ORDERS
) -> Array | None:
    """Shares of votes on [columns] without the bias of an early stop; None if too few orders can be found.

    `votes` [n, 2] drove the `decision`; `wanted` [n, columns, 2] are the votes on and off whose shares are asked for;
    `orders`: how many orders of the prompts to average.

    A measurement that ends when the votes are extreme has, on average, an extreme share of votes. The first batch has
    no such bias, since nothing can end the measurement before it. Given the votes cast and when the measurement ended,
    every order of the prompts that would have ended it in the same batch is equally likely. So the share of the first
    batch is averaged over such orders, drawn at random: this keeps its lack of bias and has the smallest variance that
    the votes allow. It assumes independent prompts in random order, and nothing about how they vote; if prompts cast
    unequal votes, a ratio's bias of order 1 / n is left.

    Sources: Blackwell 1947 ("Conditional expectation and unbiased sequential estimation", Annals of Mathematical
    Statistics 18); for coin tosses the mean over orders has a closed form, Girshick, Mosteller and Savage 1946. Drawing
    the orders is ours. The draw is seeded: the same votes give the same estimate.
    """
    if ended.before == 0:
        return shares_on(wanted)
    values, codes = np.unique(votes, axis=0, return_inverse=True)
    codes, count = codes.ravel(), len(votes)
    rng, won, found, steps = np.random.default_rng(0), np.zeros(wanted.shape[1:]), 0, 0
    part = max(1, min(orders, STEPS // (8 * count)))
    while found < orders and steps < STEPS:
        drawn = rng.permuted(np.tile(np.arange(count), (part, 1)), axis=1)
        at, _ = _first(codes[drawn], values, decision)
        alike = (at > ended.before) if ended.early else (at == 0) | (at > ended.before)
        won += wanted[drawn[alike, : ended.first]].sum((0, 1))
        found, steps = found + int(alike.sum()), steps + part * count
    return shares_on(won[None]) if found >= min(LEAST_ORDERS, orders) else None


def shares_on(wanted: Array) -> Array:
    """Shares of votes on [columns], from votes [n, columns, 2]."""
    sums = wanted.sum(0)
    return np.asarray(sums[:, 0] / sums.sum(1))


def _first(codes: Codes, values: Array, decision: Decision) -> tuple[Codes, Array]:
    """`first_decisions` of streams [streams, prompts] of places in `values` [k, 2]; a stream ends with its answer."""
    factors, goals = _gamblers(values, decision)  # [k, gamblers, bets], [gamblers]
    at, sign = np.zeros(len(codes), dtype=np.int64), np.zeros(len(codes))
    alive = np.arange(len(codes))
    capital = np.tile(SHARES, (len(codes), len(goals), 1))
    reached = np.zeros((len(codes), len(goals)), dtype=bool)
    for prompt, now in enumerate(codes.T, 1):
        with np.errstate(over="ignore"):  # a gambler that has won may win without end
            capital *= factors[now[alive]]
            reached |= capital.sum(-1) >= goals
        same = reached[:, 2:].all(1) & (len(goals) > 2)
        ends = same | reached[:, :2].any(1)
        if ends.any():
            at[alive[ends]] = prompt
            sign[alive[ends]] = np.where(same, 0.0, np.where(reached[:, 0], 1.0, -1.0))[ends]
            alive, capital, reached = alive[~ends], capital[~ends], reached[~ends]
    return at, sign


def _gamblers(values: Array, decision: Decision) -> tuple[Array, Array]:
    """Factors [k, gamblers, bets] for votes `values` [k, 2], and the capital [gamblers] at which each has won.

    Gamblers bet above and below 0.5; with a zone also above its low end and below its high end.
    """
    most, zone = decision.most_votes, decision.indifference
    logs, goals = [log_payoffs(values, most)], [1 / decision.alpha] * 2
    if zone is not None:
        logs += [
            log_payoffs(values, most, BOUNDARY - zone)[:, :1],
            log_payoffs(values, most, BOUNDARY + zone)[:, 1:],
        ]
        goals += [2 / decision.alpha] * 2
    return np.exp(np.concatenate(logs, axis=1)), np.array(goals)
