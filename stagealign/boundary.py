"""The boundary meter's arithmetic: votes of one prompt, score over prompts, and a decision with a guarantee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cross_votes(on: Sequence[float], off: Sequence[float]) -> tuple[float, float, int]:
    """(votes for on, votes for off, ties) of one prompt over all `len(on) * len(off)` comparisons across sources.

    The higher score wins a comparison; equal scores tie, and a tie counts half to each side, so
    `votes_on + votes_off == len(on) * len(off)` always.
    """
    a, b = np.asarray(on, dtype=float), np.asarray(off, dtype=float)
    difference = a[:, None] - b[None, :]
    ties = int((difference == 0).sum())
    wins = float((difference > 0).sum()) + ties / 2
    return wins, float(a.size * b.size) - wins, ties


def top_vote(on: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """(vote for on, vote for off) of one prompt: one vote, to the source of its best candidate.

    A tie for the best across the two sources counts half to each; a tie within a source changes nothing.
    """
    best_on, best_off = max(on), max(off)
    if best_on == best_off:
        return 0.5, 0.5
    return (1.0, 0.0) if best_on > best_off else (0.0, 1.0)
