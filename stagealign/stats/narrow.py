"""When an interval over prompts is too narrow: what a sample of this size cannot have seen."""

from collections.abc import Iterator

from stagealign.stats.votes import Array, BoundaryScore

UNSEEN = 3.0
"""Rule of three: what this many in n prompts do is unseen in n prompts with probability 5% (exp(-3)). Source: Hanley
and Lippman-Hand 1983, "If nothing goes wrong, is everything all right?" (JAMA 249)."""
FEW_PROMPTS = 30
"""Effective prompts from which on the coverage is measured at 0.93 to 0.97 (`python -m benchmarks.boundary`)."""


def too_narrow(votes: Array, found: BoundaryScore) -> Iterator[str]:
    """Yields a sentence for each reason why the interval of `found`, the score of `votes` [n, 2], may be too narrow.

    Three rules, for an interval at a fixed number of prompts (a confidence sequence needs none of them: it holds for
    any votes). Prompts that vote quite differently but rarely are often missing in a small sample, and then the sample
    shows less variance than there is:

    - unseen prompts: 3 / n of all prompts could vote all one way without a trace, and would move the score out of the
      interval. Measured with losses of all votes by 5% of 30 prompts that otherwise vote 3 : 1: the interval covers
      the score in 78% of samples, and covers it or warns in 99% (2% of 50 prompts: 65% and 99.9%).
    - few prompts: fewer than 30.
    - unequal prompts: a few prompts cast most votes, so that they count as fewer than 30, by Kish's effective number
      (sum of votes squared over sum of squared votes; Kish 1965, "Survey Sampling").
    """
    n, (low, high), score = len(votes), found.interval, found.score
    if n == 1:
        return
    rest = 1 - min(1.0, UNSEEN / n)
    if low > score * rest or high < min(1.0, score * rest + 1 - rest):
        alike = "all prompts vote alike" if found.standard_error == 0 else "the prompts vote much alike"
        yield (
            f"Careful: the interval may be too narrow: {alike}, and up to {100 * (1 - rest):.2g}% of all prompts could "
            f"vote quite differently without one among these {n}, which alone would move the score to "
            f"{score * rest:.2f} or {min(1.0, score * rest + 1 - rest):.2f}. More prompts, or --decide, tell."
        )
    weights = votes.sum(1)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    if n < FEW_PROMPTS:
        yield f"Careful: the interval rests on {n} prompts; below {FEW_PROMPTS} its 95% are approximate."
    elif effective < FEW_PROMPTS:
        yield (
            f"Careful: the interval may be too narrow: a few prompts cast most of the votes, so the {n} prompts count "
            f"as {effective:.0f}; below {FEW_PROMPTS} its 95% are approximate."
        )
