"""Verdicts on claims from estimates, Holm-corrected over all claims of a scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from stagealign.grid.claims import Claim

ALPHA = 0.05
REPRODUCED = "reproduced"
DIRECTION_ONLY = "direction only"
NOT_REPRODUCED = "not reproduced"
UNDER_POWERED = "under-powered"
NOT_RUN = "not run"
VERDICTS = (REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, UNDER_POWERED, NOT_RUN)
"""Ordered from the strongest support to none."""


@dataclass(frozen=True)
class ClaimEstimate:
    """Estimate of one claim's metric from results."""

    effect: float
    """Signed so that the claimed direction is positive, in the claim's unit."""
    value: float | None
    """Number to compare with the claim's tolerance (a ratio or a score); None if it has no usable value."""
    shown: str
    """Value and interval as text."""
    p: float
    """Two-sided p value against no effect."""
    highest: float
    """Upper end of the effect's 95% interval."""


def normal(effect: float, standard_error: float, value: float | None, shown: str) -> ClaimEstimate:
    """Estimate with a normal error; `standard_error` is positive, in the unit of `effect`.

    Raises ValueError if `standard_error` is not positive: a metric without an interval decides nothing.
    """
    if not standard_error > 0:
        raise ValueError(f"standard error {standard_error!r}: not positive; give a metric with an interval")
    p = math.erfc(abs(effect) / standard_error / math.sqrt(2))
    return ClaimEstimate(effect, value, shown, p, effect + NormalDist().inv_cdf(1 - ALPHA / 2) * standard_error)


def share_of(right: int, n: int, shown: str) -> ClaimEstimate:
    """Estimate of a share against one half, by the exact binomial test and the Clopper-Pearson interval."""
    from scipy.stats import binomtest

    test = binomtest(right, n)
    return ClaimEstimate(right / n - 0.5, right / n, shown, float(test.pvalue), float(test.proportion_ci().high) - 0.5)


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim with its estimate and verdict."""

    claim: Claim
    state: str
    """One of `VERDICTS`."""
    why: str
    estimate: ClaimEstimate | None = None
    adjusted: float | None = None
    """p value, Holm-corrected over all claims of the scale with an estimate."""


def judge(claims: Sequence[Claim], estimates: Sequence[ClaimEstimate | str]) -> list[ClaimVerdict]:
    """One verdict for each claim; a text in place of an estimate is the reason for its absence.

    A direction holds if its Holm-corrected p value is below 5%.

    - `reproduced`: the claimed direction holds, and the value lies in the claim's tolerance if it has one.
    - `direction only`: the claimed direction holds, but the value lies outside the tolerance.
    - `not reproduced`: the opposite direction holds, or neither does and the 95% interval excludes the claim's smallest
      effect.
    - `under-powered`: none of the above.
    """
    run = [estimate for estimate in estimates if isinstance(estimate, ClaimEstimate)]
    adjusted = iter(holm([estimate.p for estimate in run]))
    return [
        ClaimVerdict(claim, NOT_RUN, estimate)
        if isinstance(estimate, str)
        else ClaimVerdict(claim, *_state(claim, estimate, p := next(adjusted)), estimate, p)
        for claim, estimate in zip(claims, estimates, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p values in the given order, at most 1.

    Source: Holm 1979, step-down; controls the chance of any false statement under every dependence.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _state(claim: Claim, estimate: ClaimEstimate, p: float) -> tuple[str, str]:
    """Verdict and reason of a claim with an estimate."""
    if p < ALPHA and estimate.effect < 0:
        return NOT_REPRODUCED, "the opposite direction holds"
    if p < ALPHA:
        if claim.tolerance is None:
            return REPRODUCED, "the claimed direction holds; the claim gives only a direction"
        low, high = claim.tolerance
        if estimate.value is not None and low <= estimate.value <= high:
            return REPRODUCED, f"the claimed direction holds, and the value lies in [{low:g}, {high:g}]"
        return DIRECTION_ONLY, f"the claimed direction holds, but the value lies outside [{low:g}, {high:g}]"
    if estimate.highest < claim.smallest_effect:
        return NOT_REPRODUCED, f"rules out an effect of {claim.smallest_effect:g} or more ({claim.unit})"
    if estimate.effect < 0:
        return UNDER_POWERED, "opposite direction, not significant"
    return UNDER_POWERED, "right direction, not significant"
