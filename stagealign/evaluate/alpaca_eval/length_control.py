"""AlpacaEval 2's length-controlled win rate without the hub: a logistic model with three weights, and a learned prior.

The model of a comparison's outcome (0 = baseline ... 1 = model) is, for one generator,

    P = sigmoid(length * tanh(d / std(d)) + difficulty * instruction_difficulty + base)
    d = baseline_chars - model_chars

and the length-controlled win rate is the mean of P over the prompts with d = 0.
Source: Dubois et al. 2024, arXiv 2404.04475; alpaca_eval 0.6.6, `metrics/glm_winrate.py`, `length_controlled_v1`.

Approximation. The official fit also uses 1,610 rows of the baseline against its own concise and verbose answers
("gamed", from the hub), each with weight 0.1 and without the base weight. It has an L1 penalty 1 / C with C from
cross-validation over ten values. The gamed rows are the same for every generator, so their loss is a fixed function of
the length and difficulty weights. At published weights, its gradient balances the gradient of the generator's own rows
and is therefore known there. `LengthPrior` is the quadratic with that gradient (least squares, five numbers); one mean
pull on the base weight replaces C. Distance from published values: `python -m benchmarks.length_control`.

Deviation. Difficulties are joined by prompt. The official function uses the k-th difficulty for the k-th row. If a
generator misses a prompt, all later rows get the difficulty of another prompt, which moves published values by up to
2.5 points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagealign.evaluate.alpaca_eval import length_prior

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LengthWeights:
    """Weights of one generator, in logits.

    The official names are, in this order, `np.tanh(std_delta_len)`, `instruction_difficulty` and
    `not_gamed_baseline.astype(float)`.
    """

    length: float
    difficulty: float
    base: float


@dataclass(frozen=True)
class LengthPrior:
    """Quadratic penalty on the (length, difficulty) weights w, and a pull of the base weight towards 0.

    The penalty is w'Cw / 2 + s'w with C `curvature` and s `slope`, in nats for all rows together. It equals a Gaussian
    prior with precision C and mean -inv(C) s. `base_pull` is in nats per logit of |base|.
    """

    curvature: tuple[tuple[float, float], tuple[float, float]]
    slope: tuple[float, float]
    base_pull: float

    def for_rows(self, n: int) -> "LengthPrior":
        """This prior scaled by `n` / `ALL_PROMPTS`, so that a subset of the prompts estimates the value of all.

        The official rows keep their weight for fewer prompts, which biases the value on half of them by +0.3 points.
        """
        share = min(1.0, n / ALL_PROMPTS)
        (length, both), (_, difficulty) = self.curvature
        curvature = ((share * length, share * both), (share * both, share * difficulty))
        return LengthPrior(curvature, (share * self.slope[0], share * self.slope[1]), share * self.base_pull)


ALL_PROMPTS = 805
LEARNED = LengthPrior(length_prior.CURVATURE, length_prior.SLOPE, length_prior.BASE_PULL)
FEWEST_ROWS, FEWEST_EVENTS = 100, 5
"""Judged prompts, and wins and losses, that a length-controlled win rate needs; see `too_few`."""
PLAIN = LengthPrior(((0.0, 0.0), (0.0, 0.0)), (0.0, 0.0), 0.0)
"""Prior without effect: maximum likelihood on the generator's own rows."""


def features(baseline_chars: ArrayLike, model_chars: ArrayLike, difficulty: ArrayLike) -> Array:
    """Features of comparisons, shape (n, 3): length difference squeezed to (-1, 1), instruction difficulty, 1.

    The difference is in standard deviations (n - 1) of this generator's rows, negative for a longer answer of the
    model. If all differences are equal, the feature is their sign, the limit of the formula.
    """
    delta = np.asarray(baseline_chars, dtype=np.float64) - np.asarray(model_chars, dtype=np.float64)
    spread = delta.std(ddof=1) if len(delta) > 1 else 0.0
    squeezed = np.tanh(delta / spread) if spread > 0 else np.sign(delta)
    return np.stack([squeezed, np.asarray(difficulty, dtype=np.float64), np.ones(len(delta))], axis=1)


def score(rows: Array, outcomes: Array, weights: LengthWeights) -> Array:
    """Gradient of the rows' negative log-likelihood at `weights`, shape (3,); `outcomes` of shape (n,), in [0, 1]."""
    gradient: Array = rows.T @ (_chances(rows, _vector(weights)) - outcomes)
    return gradient


def fit(rows: Array, outcomes: Array, prior: LengthPrior = LEARNED, with_difficulty: bool = True) -> LengthWeights:
    """Weights with the highest posterior; rows of shape (n, 3) from `features`, outcomes of shape (n,), in [0, 1].

    The base pull is an L1 penalty: the base weight is 0 if the gradient of the rows is smaller than the pull.
    Without difficulties their weight is fixed at 0, also in the penalty. Raises ValueError without rows, for outcomes
    outside [0, 1], or if no optimum is found.
    """
    if len(outcomes) == 0 or not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError(f"{len(outcomes)} outcomes; give at least one, all in [0, 1]")
    shared = (0, 1) if with_difficulty else (0,)
    if prior.base_pull == 0:
        return _minimise(rows, outcomes, prior, 0.0, (*shared, 2))
    without = _minimise(rows, outcomes, prior, 0.0, shared)
    pull = -float(score(rows, outcomes, without)[2])
    if abs(pull) <= prior.base_pull:
        return without
    return _minimise(rows, outcomes, prior, math.copysign(1.0, pull), (*shared, 2))


def length_controlled(weights: LengthWeights, difficulty: Array) -> Array:
    """Win probability of each prompt at equal lengths, shape (n,), in percent; the mean is the LC win rate."""
    return 100 * _sigmoid(weights.base + weights.difficulty * difficulty)


def sampling_error(
    rows: Array, outcomes: Array, weights: LengthWeights, prior: LengthPrior = LEARNED, with_difficulty: bool = True
) -> float:
    """Standard error, in points, of a fitted length-controlled win rate over draws of the prompts.

    It includes the variation of the weights, which the official error leaves out. The learned prior is taken as exact.
    Infinite for one row. Compared with random quarters of 29 models it is 15% too small. See `too_few` for the rows
    that it needs.
    """
    n = len(outcomes)
    if n < 2:
        return float("inf")
    influence = _influence(rows, outcomes, weights, prior, with_difficulty)
    return float(100 * np.sqrt(n / (n - 1) * (influence**2).sum()))


def too_few(outcomes: Array) -> str | None:
    """Reason why a length-controlled win rate of these outcomes is not to be used; None if there are enough.

    Measured on random subsets of 29 published models, fitted and compared with the fit to all 805 prompts: the root
    mean square error is 9.1 points at 10 prompts, 4.3 at 50, 3.0 at 100 and 2.2 at 200. The 95% interval by
    `sampling_error` covers 0.55, 0.84, 0.88 and 0.91; it covers at most 0.4 with less than one win, 0.7 to 0.9 with one
    to three, and 0.9 from about `FEWEST_EVENTS` on. The latter is also the number of events a weight of a logistic
    model needs by Vittinghoff and McCulloch 2007 (American Journal of Epidemiology 165), half of Peduzzi et al. 1996.
    """
    n, wins = len(outcomes), float(np.sum(outcomes))
    if n < FEWEST_ROWS:
        return f"{n} judged prompts, fewer than {FEWEST_ROWS}"
    events = min(wins, n - wins)
    if events < FEWEST_EVENTS:
        return f"{events:.1f} {'wins' if wins <= n - wins else 'losses'}, fewer than {FEWEST_EVENTS}"
    return None


def pseudo_values(rows: Array, outcomes: Array) -> Array:
    """Pseudo-value of each prompt, shape (n,), in percent, of the LC win rate that is fitted to these rows.

    Their mean is that rate, and their standard error is its sampling error, so two policies can be compared prompt by
    prompt. A single value may be below 0 or above 100. Raises ValueError as `fit` does.
    """
    prior = LEARNED.for_rows(len(outcomes))
    weights = fit(rows, outcomes, prior)
    rate = length_controlled(weights, rows[:, 1]).mean()
    return np.asarray(rate + 100 * len(outcomes) * _influence(rows, outcomes, weights, prior))


def _influence(
    rows: Array, outcomes: Array, weights: LengthWeights, prior: LengthPrior, with_difficulty: bool = True
) -> Array:
    """Influence of each prompt on the LC win rate as a share, shape (n,), with sum 0.

    Delta method with the sandwich variance (Huber 1967): the influence on the mean and, through the weights, on the
    probabilities of all prompts.
    """
    n = len(outcomes)
    chances = _chances(rows, _vector(weights))
    hessian = (rows * (chances * (1 - chances))[:, None]).T @ rows
    hessian[:2, :2] += prior.curvature
    equal = length_controlled(weights, rows[:, 1]) / 100
    slope = (equal * (1 - equal)) @ (rows * [0.0, 1.0, 1.0]) / n
    free = [0, 1, 2] if with_difficulty else [0, 2]
    inverse = np.linalg.pinv(hessian[np.ix_(free, free)])
    through = (rows * (outcomes - chances)[:, None])[:, free] @ inverse @ slope[free]
    return np.asarray((equal - equal.mean()) / n + through - through.mean())


def _minimise(rows: Array, outcomes: Array, prior: LengthPrior, sign: float, free: Sequence[int]) -> LengthWeights:
    """Weights at the optimum of the loss with the base pull as a linear term of this sign; those not `free` are 0.

    Raises ValueError if no optimum is found.
    """
    from scipy.optimize import minimize

    columns = list(free)
    own = rows[:, columns]
    whole_curvature, whole_slope = np.zeros((3, 3)), np.array([*prior.slope, sign * prior.base_pull])
    whole_curvature[:2, :2] = prior.curvature
    curvature, slope = whole_curvature[np.ix_(columns, columns)], whole_slope[columns]

    def loss(weights: Array) -> float:
        logits = own @ weights
        likelihood = np.logaddexp(0, logits).sum() - outcomes @ logits
        return float(likelihood + weights @ curvature @ weights / 2 + slope @ weights)

    def gradient(weights: Array) -> Array:
        return np.asarray(own.T @ (_chances(own, weights) - outcomes) + curvature @ weights + slope)

    def hessian(weights: Array) -> Array:
        chances = _chances(own, weights)
        return np.asarray((own * (chances * (1 - chances))[:, None]).T @ own + curvature)

    start = np.zeros(len(columns))
    done = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-7})
    if np.abs(gradient(done.x)).max() > 1e-4:
        raise ValueError(f"no optimum in {done.nit} steps; are the features finite?")
    by_column = dict(zip(columns, done.x.tolist(), strict=True))
    return LengthWeights(*(by_column.get(column, 0.0) for column in range(3)))


def _chances(rows: Array, weights: Array) -> Array:
    return _sigmoid(rows @ weights)


def _vector(weights: LengthWeights) -> Array:
    return np.array([weights.length, weights.difficulty, weights.base])


def _sigmoid(logits: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
