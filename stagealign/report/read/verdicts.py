"""Estimate and claim to verdict: pure numbers, corrected for many claims at once."""

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
"""From the strongest support to none."""


@dataclass(frozen=True)
class ClaimEstimate:
    """What results say about one claim's metric."""

    effect: float
    """Signed so that the claimed direction is positive, in the claim's unit."""
    value: float | None
    """The number that a tolerance is about (a ratio, a score); None where it has no useful value."""
    shown: str
    """Value and interval as text, as the tables show it."""
    p: float
    """Two-sided probability of an effect this far from 0 where there is none."""
    highest: float
    """Upper end of the effect's 95% interval."""


def normal(effect: float, standard_error: float, value: float | None, shown: str) -> ClaimEstimate:
    """An estimate whose error is normal; `standard_error` is positive, in the unit of `effect`.

    Raises ValueError for an error that is not positive: a metric without an interval decides nothing.
    """
    if not standard_error > 0:
        raise ValueError(f"standard error {standard_error!r}: not positive; give a metric with an interval")
    p = math.erfc(abs(effect) / standard_error / math.sqrt(2))
    return ClaimEstimate(effect, value, shown, p, effect + NormalDist().inv_cdf(1 - ALPHA / 2) * standard_error)


def share_of(right: int, n: int, shown: str) -> ClaimEstimate:
    """An estimate of a share against one half, by the exact binomial test and the Clopper-Pearson interval."""
    from scipy.stats import binomtest

    found = binomtest(right, n)
    return ClaimEstimate(
        right / n - 0.5, right / n, shown, float(found.pvalue), float(found.proportion_ci().high) - 0.5
    )


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim, what was found, and what that makes of the claim."""

    claim: Claim
    state: str
    """One of `VERDICTS`."""
    why: str
    estimate: ClaimEstimate | None = None
    adjusted: float | None = None
    """p value corrected by Holm over all claims of the scale that were run."""


def judge(claims: Sequence[Claim], estimates: Sequence[ClaimEstimate | str]) -> list[ClaimVerdict]:
    """One verdict a claim; an estimate that is text says why there is none.

    A direction holds where its p value, corrected over all claims that were run, is below 5%. `reproduced`: the claimed
    direction holds and the value lies in the claim's tolerance, where it has one. `direction only`: it holds, the value
    lies outside. `not reproduced`: the opposite direction holds, or neither does and the 95% interval leaves out every
    effect as large as the smallest one planned for. `under-powered`: none of these can be said.
    """
    run = [found for found in estimates if isinstance(found, ClaimEstimate)]
    adjusted = iter(holm([found.p for found in run]))
    return [
        ClaimVerdict(claim, NOT_RUN, found)
        if isinstance(found, str)
        else ClaimVerdict(claim, *_state(claim, found, p := next(adjusted)), found, p)
        for claim, found in zip(claims, estimates, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for being many, in the order given; at most 1.

    Source: Holm 1979, step-down; controls the chance of any false statement under every dependence.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _state(claim: Claim, found: ClaimEstimate, p: float) -> tuple[str, str]:
    """Verdict and reason of a claim that was run."""
    if p < ALPHA and found.effect < 0:
        return NOT_REPRODUCED, "the opposite direction holds"
    if p < ALPHA:
        if claim.tolerance is None:
            return REPRODUCED, "the claimed direction holds; the claim gives only a direction"
        low, high = claim.tolerance
        if found.value is not None and low <= found.value <= high:
            return REPRODUCED, f"the claimed direction holds, and the value lies in [{low:g}, {high:g}]"
        return DIRECTION_ONLY, f"the claimed direction holds, but the value lies outside [{low:g}, {high:g}]"
    if found.highest < claim.smallest_effect:
        return NOT_REPRODUCED, f"rules out an effect of {claim.smallest_effect:g} or more ({claim.unit})"
    if found.effect < 0:
        return UNDER_POWERED, "opposite direction, not significant"
    return UNDER_POWERED, "right direction, not significant"
