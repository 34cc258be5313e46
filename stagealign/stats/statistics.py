"""Means, paired gains and rank correlations with their intervals; every random generator is an argument.

A gain table is `{prompt hash: gain}`; a list of them has one entry a seed.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NotRequired, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

Gains = Mapping[str, float]
Ladder = Sequence[tuple[float, Gains]]
"""Rungs of one source and seed as (KL in nats a completion, gain by prompt hash)."""
Array = NDArray[np.float64]
Rung = TypeVar("Rung", bound=Hashable)
LEVEL = 0.95
POWER = 0.8
DRAWS = 2000
"""Bootstrap samples; a 95% bound then moves by about 3% of the interval's width from one generator to another."""


class Metric(TypedDict):
    """A number with its uncertainty. A field typed `Any` is a number, or None as its description says."""

    value: Any
    """None if it is not known; `reason` then says why."""
    unit: str
    n: int
    """Number of independent cases: prompts, seeds or votes."""
    standard_error: Any
    """None for a single value."""
    interval: Any
    """[low, high] at 95%; None for a single value."""
    reason: NotRequired[str | None]
    seeds: NotRequired[int]
    between_seeds: NotRequired[float | None]
    """Standard deviation of the seeds' values; None for one seed."""
    over_prompts: NotRequired[float | None]
    """Mean standard error of one seed's mean over its prompts."""
    on: NotRequired["Metric"]
    """Numerator of a ratio."""
    off: NotRequired["Metric"]
    """Denominator of a ratio."""
    difference: NotRequired["Metric"]
    """Numerator minus denominator of a ratio."""
    kl: NotRequired[float]
    """KL at which a ratio was taken, in nats a completion."""


def mean_metric(values: Sequence[float], unit: str) -> Metric:
    """Mean of independent `values` [n] with its standard error and t interval, all in `unit`.

    Raises ValueError for no values, or one that is not finite.
    """
    array = finite_values(values)
    n = len(array)
    mean = float(array.mean())
    if n == 1:
        return {"value": mean, "unit": unit, "n": 1, "standard_error": None, "interval": None}
    error = float(array.std(ddof=1) / math.sqrt(n))
    half = t_quantile(n - 1) * error
    return {"value": mean, "unit": unit, "n": n, "standard_error": error, "interval": [mean - half, mean + half]}


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Half-width, in standard errors, of a two-sided `level` interval with `degrees` degrees of freedom.

    Exact for 1 and 2 degrees, within 0.2% from 3 on at 95%. Source: Abramowitz and Stegun 26.7.5.
    """
    if degrees == 1:
        return math.tan(math.pi * level / 2)
    if degrees == 2:
        return level * math.sqrt(2 / (1 - level**2))
    z = _z(level)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def proportion(successes: int, n: int, unit: str = "share") -> Metric:
    """Share of `n` independent cases with its Wilson interval, which stays inside 0 and 1 for few cases.

    Source: Wilson 1927. Raises ValueError for no cases.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n}: not a share; give at least one case and no more successes than cases")
    share, z = successes / n, _z(LEVEL)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    interval = [max(0.0, centre - half), min(1.0, centre + half)]
    return {
        "value": share,
        "unit": unit,
        "n": n,
        "standard_error": math.sqrt(share * (1 - share) / n),
        "interval": interval,
    }


def paired_differences(after: Gains, before: Gains) -> dict[str, float]:
    """`after - before` by prompt hash.

    Raises ValueError with the number of hashes that either side misses.
    """
    if after.keys() != before.keys():
        raise ValueError(
            f"prompts differ: {len(before.keys() - after.keys())} of the hashes before are missing after, "
            f"{len(after.keys() - before.keys())} of those after are missing before; evaluate both on one set"
        )
    return {prompt: after[prompt] - before[prompt] for prompt in sorted(after)}


def paired_gain(after: Gains, before: Gains, unit: str) -> Metric:
    """Mean of `after - before` over prompts, joined by prompt hash; error and interval are those of the differences."""
    return mean_metric(list(paired_differences(after, before).values()), unit)


def mean_over_seeds(gains: Sequence[Gains], unit: str, rng: np.random.Generator) -> Metric:
    """Mean gain over seeds; interval by two-level bootstrap. Also `seeds`, `between_seeds` and `over_prompts`.

    `between_seeds` is the standard deviation of the seeds' mean gains (None for one seed), `over_prompts` the mean
    standard error of one seed's mean over its prompts. The two show whether seeds or prompts cause more spread.
    """
    samples = resample([as_columns(table) for table in gains], share_prompts(gains), rng)[:, 0]
    return summary(gains, samples, unit)


def pooled_score(scores: Sequence[float], intervals: Sequence[Sequence[float] | None], unit: str = "share") -> Metric:
    """Mean of one score a seed; interval from sampling within seeds plus the spread between them.

    The two variances are added, so the interval is conservative; it is clipped to [0, 1].
    """
    values, z = finite_values(scores), _z(LEVEL)
    errors = np.array([(interval[1] - interval[0]) / (2 * z) if interval else 0.0 for interval in intervals])
    between = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    error = math.sqrt((float((errors**2).mean()) + between) / len(values))
    mean = float(values.mean())
    interval = [max(0.0, mean - z * error), min(1.0, mean + z * error)]
    return {
        "value": mean,
        "unit": unit,
        "n": len(values),
        "standard_error": error,
        "interval": interval if error > 0 else None,
        "between_seeds": math.sqrt(between) if len(values) > 1 else None,
    }


def smallest_visible(standard_error: float) -> float:
    """Smallest true difference that a 95% interval of this standard error would show in 4 of 5 repetitions."""
    return (_z(LEVEL) + NormalDist().inv_cdf(POWER)) * standard_error


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def finite_values(values: Sequence[float]) -> Array:
    """The values [n] as float64. Raises ValueError for no values, or one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values; a mean needs at least one")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite; count them as failed"
        )
    return array


def as_columns(*tables: Gains) -> Array:
    """Values [prompts, tables], rows in the order of the prompt hash.

    Raises ValueError if the tables do not share their prompts.
    """
    for other in tables[1:]:
        paired_differences(tables[0], other)
    return np.stack([finite_values([table[prompt] for prompt in sorted(tables[0])]) for table in tables], axis=1)


def share_prompts(gains: Sequence[Gains]) -> bool:
    """Whether all seeds were evaluated on the same prompts."""
    return len({frozenset(table) for table in gains}) == 1


def resample(tables: Sequence[Array], crossed: bool, rng: np.random.Generator) -> Array:
    """Means [draws, columns] over resampled prompts within resampled seeds.

    `tables` has [prompts, columns] per seed; `crossed`: all seeds have the same prompts and share their draws.
    """
    if not tables:
        raise ValueError("no seeds; give at least one table of gains")
    chosen = rng.integers(len(tables), size=(DRAWS, len(tables)))
    if crossed:
        drawn_prompts = _counts(rng.integers(len(tables[0]), size=(DRAWS, len(tables[0]))))
        by_seed = np.stack([drawn_prompts @ table / len(table) for table in tables], axis=1)
        drawn: Array = np.take_along_axis(by_seed, chosen[:, :, None], axis=1).mean(axis=1)
        return drawn
    means = np.empty((*chosen.shape, tables[0].shape[1]))
    for seed, table in enumerate(tables):
        drawn_here = chosen == seed
        drawn_prompts = _counts(rng.integers(len(table), size=(int(drawn_here.sum()), len(table))))
        means[drawn_here] = drawn_prompts @ table / len(table)
    result: Array = means.mean(axis=1)
    return result


def _counts(rows: NDArray[np.int64]) -> Array:
    """Counts [draws, n] of the draws of each of n rows, from the rows' numbers [draws, n]."""
    draws, n = rows.shape
    flat = (rows + n * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * n).reshape(draws, n).astype(np.float64)


def summary(gains: Sequence[Gains], samples: Array, unit: str) -> Metric:
    """Mean gain over seeds, with the error and interval of its bootstrap `samples` [draws]."""
    arrays = [finite_values(list(table.values())) for table in gains]
    means = np.array([array.mean() for array in arrays])
    alone = any(len(array) == 1 for array in arrays)
    errors = [] if alone else [float(array.std(ddof=1) / math.sqrt(len(array))) for array in arrays]
    return {
        "value": float(means.mean()),
        "unit": unit,
        "n": sum(len(table) for table in gains),
        "standard_error": float(samples.std(ddof=1)),
        "interval": percentiles(samples),
        "seeds": len(gains),
        "between_seeds": float(means.std(ddof=1)) if len(gains) > 1 else None,
        "over_prompts": float(np.mean(errors)) if errors else None,
    }


def percentiles(samples: Array) -> list[float]:
    """The 95% percentile interval [low, high] of bootstrap `samples` [draws]."""
    low, high = np.percentile(samples, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Rank correlation of two scorings of the same texts."""
    from scipy.stats import spearmanr

    return round(float(spearmanr(ours, theirs).statistic), 3)
