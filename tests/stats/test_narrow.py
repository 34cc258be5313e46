"""Intervals that are too narrow say so: coverage of the samples without a warning, over rare and unequal prompts."""

import numpy as np
import pytest

from benchmarks.boundary.world import world_at
from stagealign.stats.narrow import too_narrow
from stagealign.stats.votes import boundary_score


def rare_losses(share, usual, count=4):
    """Votes of prompts that win `usual` of 4, but for a share of them that lose all of their `count` votes."""

    def votes(rng, prompts):
        lost = rng.random(prompts) < share
        return np.stack([np.where(lost, 0.0, usual), np.where(lost, count, 4.0 - usual)], axis=1)

    return votes, (1 - share) * usual / ((1 - share) * 4 + share * count)


@pytest.mark.parametrize(("share", "prompts"), [(0.1, 20), (0.05, 30), (0.02, 50), (0.02, 100), (0.05, 100)])
@pytest.mark.parametrize(("usual", "count"), [(3.0, 4), (2.0, 4), (3.0, 20)])
def test_intervals_without_a_warning_cover(share, prompts, usual, count):
    """At least 90% of the samples cover the score or warn, where the interval alone covers as few as 45%."""
    draw, truth = rare_losses(share, usual, count)
    rng, covered, warned = np.random.default_rng(3), [], []
    for _ in range(250):
        votes = draw(rng, prompts)
        found = boundary_score(votes)
        covered.append(found.interval[0] <= truth <= found.interval[1])
        warned.append(any("may be too narrow" in line for line in too_narrow(votes, found)))
    assert np.mean(np.array(covered) | np.array(warned)) >= 0.9
    if prompts <= 30 and usual == 3:
        assert np.mean(covered) < 0.93


@pytest.mark.parametrize("score", [0.3, 0.5, 0.6])
@pytest.mark.parametrize("prompts", [50, 400])
def test_ordinary_votes_are_not_doubted(score, prompts):
    streams = world_at(score).votes(np.random.default_rng(5), (100, prompts))
    doubted = sum(any(too_narrow(votes, boundary_score(votes))) for votes in streams)
    assert doubted <= 2


def test_reasons_are_named():
    def said(votes):
        votes = np.array(votes, dtype=float)
        return list(too_narrow(votes, boundary_score(votes)))

    (alike,) = said([(3, 1)] * 60)
    assert "all prompts vote alike, and up to 5% of all prompts could vote quite differently" in alike
    assert "would move the score to 0.71 or 0.76" in alike
    (much,) = said([(3, 1)] * 59 + [(2, 2)])
    assert "the prompts vote much alike" in much
    (few,) = said([(4, 0), (0, 4)] * 10)
    assert few == "Careful: the interval rests on 20 prompts; below 30 its 95% are approximate."
    (heavy,) = said([(4, 0), (0, 4)] * 50 + [(400, 400)])
    assert "a few prompts cast most of the votes, so the 101 prompts count as 2" in heavy
    assert said([(4, 0)]) == []
    assert said([(4, 0), (0, 4)] * 50) == []
