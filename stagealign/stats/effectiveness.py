"""Effectiveness of two sources and their ratio."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np

from stagealign.stats.statistics import (
    Gains,
    Ladder,
    Metric,
    Rung,
    as_columns,
    finite_values,
    paired_differences,
    percentiles,
    resample,
    share_prompts,
    summary,
)


def effectiveness_ratio(
    on_gains: Sequence[Gains], off_gains: Sequence[Gains], rng: np.random.Generator, unit: str = "reward"
) -> Metric:
    """On-policy over off-policy mean gain, with a percentile interval from a two-level bootstrap.

    Entry k of both lists is seed k. Seeds are drawn first, then prompts. Both sources get the same draws; so do all
    seeds if they have the same prompts, as an easy prompt is easy for every seed. The value is None, with a `reason`,
    if the off-policy gain's interval meets 0 or lies below it. `on` and `off` have the form of `mean_over_seeds`;
    `difference` is on minus off, which always has a value.
    """
    if len(on_gains) != len(off_gains):
        raise ValueError(f"{len(on_gains)} seeds on-policy, {len(off_gains)} off-policy; give the seeds both have")
    tables = [as_columns(on, off) for on, off in zip(on_gains, off_gains, strict=True)]
    samples = resample(tables, share_prompts(on_gains), rng)
    differences = [paired_differences(on, off) for on, off in zip(on_gains, off_gains, strict=True)]
    on, off = summary(on_gains, samples[:, 0], unit), summary(off_gains, samples[:, 1], unit)
    ratio: Metric = {"value": None, "unit": "ratio", "n": on["n"], "standard_error": None, "interval": None}
    ratio["reason"] = _no_ratio(off)
    if ratio["reason"] is None:
        ratios = samples[:, 0] / samples[:, 1]
        ratio["value"], ratio["interval"] = on["value"] / off["value"], percentiles(ratios)
        ratio["standard_error"] = float(ratios.std(ddof=1))
    difference = summary(differences, samples[:, 0] - samples[:, 1], unit)
    return {**ratio, "seeds": len(tables), "on": on, "off": off, "difference": difference}


def gain_at_kl(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Gain at `kl` nats, linear between the ladder's (KL, gain) points and (0, 0); None outside their range."""
    ladder = sorted([(0.0, 0.0), *points])
    if not ladder[0][0] <= kl <= ladder[-1][0]:
        return None
    above = bisect_right(ladder, kl, key=itemgetter(0))
    left, right = ladder[above - 1], ladder[min(above, len(ladder) - 1)]
    if left[0] in (kl, right[0]):
        return left[1]
    return left[1] + (right[1] - left[1]) / (right[0] - left[0]) * (kl - left[0])


def matched_kl(on_ladders: Sequence[Ladder], off_ladders: Sequence[Ladder]) -> float:
    """The largest KL, in nats a completion, that both sources' ladders reach in every seed."""
    return min(max(kl for kl, _ in ladder) for ladder in [*on_ladders, *off_ladders])


def ratio_at_matched_kl(
    on_ladders: Sequence[Ladder], off_ladders: Sequence[Ladder], rng: np.random.Generator, unit: str = "reward"
) -> Metric:
    """`effectiveness_ratio` of both sources' gains at `matched_kl`, interpolated prompt by prompt; adds `kl`.

    The KL of a rung counts as exact, as its sampling error is small beside that of the gains.
    """
    kl = matched_kl(on_ladders, off_ladders)
    on = [_gains_at_kl(ladder, kl) for ladder in on_ladders]
    off = [_gains_at_kl(ladder, kl) for ladder in off_ladders]
    return {**effectiveness_ratio(on, off, rng, unit), "kl": kl}


def best_rung(validation: Mapping[Rung, Sequence[float]]) -> Rung:
    """Rung with the highest mean over seeds of its clean gain on validation prompts; the first one of a tie.

    The choice uses no test prompt, so it does not bias the test gain of the chosen rung.
    """
    if not validation:
        raise ValueError("no rung to choose from; give each rung's clean gain on validation prompts")
    return max(validation, key=lambda rung: float(finite_values(validation[rung]).mean()))


def _no_ratio(off: Metric) -> str | None:
    low, high = off["interval"]
    if low <= 0 <= high:
        return f"off-policy gain {off['value']:+.2f} cannot be told from 0"
    return None if low > 0 else f"off-policy gain {off['value']:+.2f} is a loss, so a ratio of gains says nothing"


def _gains_at_kl(ladder: Ladder, kl: float) -> dict[str, float]:
    for _, gains in ladder[1:]:
        paired_differences(gains, ladder[0][1])
    by_prompt = {prompt: gain_at_kl([(rung, gains[prompt]) for rung, gains in ladder], kl) for prompt in ladder[0][1]}
    return {prompt: gain for prompt, gain in by_prompt.items() if gain is not None}
