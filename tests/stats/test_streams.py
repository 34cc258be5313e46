"""Many streams at once: prompts needed against the bound, wrong answers, coverage at any time, unbiased estimates."""

import math
from itertools import product

import numpy as np
import pytest

from benchmarks.boundary.world import world_at
from stagealign.base.errors import BadData
from stagealign.stats.decision import Decision
from stagealign.stats.streams import Ended, first_decisions, shares_on, unstopped_shares

SIGN = {"undecided": 0, "no practical difference": 0, "fine-tuning": 1, "injection": -1}


@pytest.mark.parametrize("score", [0.5, 0.55])
def test_a_zone_answers_alike_in_both_forms(score):
    votes = world_at(score).votes(np.random.default_rng(2), (8, 200))
    at, sign = first_decisions(votes, 4, indifference=0.1)
    assert (at > 0).any()
    for stream, when, side in zip(votes, at, sign, strict=True):
        decision = Decision(4, indifference=0.1)
        for on, off in stream:
            decision.update(on, off)
        assert (decision.decided_at or 0, SIGN[decision.stage]) == (when, side)
        assert (decision.stage == "no practical difference") == (when > 0 and side == 0)


def most_growth(votes):
    """Largest mean log growth a prompt of any bet against 0.5: the KL in the bound on the mean number of prompts.

    No test that names the wrong stage with probability at most alpha needs fewer than log(1 / alpha) / KL prompts on
    average (Wald 1947; for bounded votes the KL to the nearest law with mean 0.5, Honda and Takemura 2010).
    """
    gains = votes[..., 0].ravel() / 2 - 1
    return max(float(np.log1p(bet * gains).mean()) for bet in np.linspace(0, 0.99, 100))


@pytest.mark.parametrize(("gap", "streams", "horizon"), [(0.05, 700, 1500), (0.1, 1500, 400), (0.25, 3000, 80)])
def test_prompts_needed_are_within_1_3_of_the_bound(gap, streams, horizon):
    """Means of the many-streams form; 0.06 for its error: two standard errors are 0.04 to 0.06 of the bound."""
    votes = world_at(0.5 + gap).votes(np.random.default_rng(8), (streams, horizon))
    at, sign = first_decisions(votes, 4)
    bound = math.log(20) / most_growth(votes)
    assert np.mean(np.where(at > 0, at, horizon)) / bound <= 1.3
    assert (at > 0).mean() > 0.99
    assert (sign < 0).mean() <= 0.05


@pytest.mark.parametrize(("score", "right"), [(0.45, -1), (0.55, 1)])
def test_no_practical_difference_is_seldom_said_of_one(score, right):
    """At the edge of the zone: wrong answers of either kind, the other stage or none, have at most 5%."""
    votes = world_at(score).votes(np.random.default_rng(6), (300, 500))
    at, sign = first_decisions(votes, 4, indifference=0.05)
    assert ((at > 0) & (sign != right)).mean() <= 0.05


@pytest.mark.parametrize(("gap", "most", "saved"), [(0.0, 2000, 0.6), (0.02, 8000, 0.55)])
def test_a_zone_saves_most_of_the_prompts_of_small_gaps(gap, most, saved):
    """Prompts with and without a zone of 0.05; without one, a gap of 0 uses up any budget."""
    votes = world_at(0.5 + gap).votes(np.random.default_rng(9), (50, most))
    plain, _ = first_decisions(votes, 4)
    zoned, _ = first_decisions(votes, 4, indifference=0.05)
    spent = [np.where(at > 0, at, most).mean() for at in (plain, zoned)]
    assert spent[1] <= (1 - saved) * spent[0]
    assert (zoned > 0).mean() >= 0.97


@pytest.mark.parametrize("score", [0.5, 0.62])
def test_both_ends_hold_at_every_look(score):
    """The interval shrinks to what no look has ruled out, so the last one is the intersection of all."""
    missed = 0
    for stream in world_at(score).votes(np.random.default_rng(4), (80, 60)):
        decision = Decision(4)
        for on, off in stream:
            decision.update(on, off)
        missed += not decision.interval[0] <= score <= decision.interval[1]
    assert missed <= 4


ENDS = (2, 4, 6, 8)
"""Prompts after each batch of the exhaustive design below."""


@pytest.mark.parametrize("zone", [None, 0.3])
@pytest.mark.parametrize("chance", [0.5, 0.6, 0.8])
def test_the_estimate_is_unbiased_over_every_course_of_a_measurement(chance, zone):
    """All 256 orders of eight votes, each with its probability: a biased share becomes an unbiased estimate."""
    courses = np.array(list(product((0.0, 1.0), repeat=8)))
    votes = np.stack([courses, 1 - courses], axis=2)
    alpha, mean, share, known = 0.5, 0.0, 0.0, {}
    at, _ = first_decisions(votes, 1, alpha, zone)
    for course, one, when in zip(courses, votes, at, strict=True):
        batch = next((place for place, end in enumerate(ENDS) if 0 < when <= end), 3)
        used, before = ENDS[batch], ENDS[batch - 1] if batch else 0
        key = used, course[:used].sum()
        if key not in known:
            ended = Ended(2, before, used < 8)
            (known[key],) = unstopped_shares(one[:used], one[:used, None], ended, Decision(1, alpha, zone))
        weight = chance ** course.sum() * (1 - chance) ** (8 - course.sum())
        mean, share = mean + weight * known[key], share + weight * course[:used].mean()
    assert mean == pytest.approx(chance, abs=0.006)
    assert abs(share - chance) > 0.02 or chance == 0.5
    assert len(known) > 5


def test_the_estimate_at_an_early_stop_is_not_inflated():
    """A true 0.65, cross votes: the share of votes won is inflated by 0.03 on average, the estimate is not."""
    streams = world_at(0.65).votes(np.random.default_rng(1), (200, 120))
    shares, estimates = [], []
    for stream, when in zip(streams, first_decisions(streams, 4)[0], strict=True):
        used = min(-(-when // 8) * 8, 120) if when else 120
        votes = stream[:used]
        ended = Ended(8, used - 8, used < 120)
        shares += list(shares_on(votes[:, None]))
        estimates += list(unstopped_shares(votes, votes[:, None], ended, Decision(4), orders=100))
    assert np.mean(shares) >= 0.67
    assert np.mean(estimates) == pytest.approx(0.65, abs=0.012)


def test_an_estimate_of_the_first_batch_is_its_share():
    votes = np.array([[4.0, 0.0], [3.0, 1.0], [0.0, 1.0]])
    wanted = np.stack([votes, votes[:, ::-1]], axis=1)
    assert unstopped_shares(votes, wanted, Ended(3, 0, True), Decision(4)) == pytest.approx([7 / 9, 2 / 9])


def test_an_estimate_without_enough_orders_is_none(monkeypatch):
    """Sorted votes: no order ends so late, as the first prompts of any order name a stage."""
    votes = np.tile([4.0, 0.0], (64, 1))
    monkeypatch.setattr("stagealign.stats.streams.STEPS", 100_000)
    assert unstopped_shares(votes, votes[:, None], Ended(8, 56, True), Decision(4)) is None


@pytest.mark.parametrize("indifference", [0, -0.1, 0.5, math.nan])
def test_a_zone_that_is_none_is_refused(indifference):
    with pytest.raises(ValueError, match="indifference"):
        Decision(4, indifference=indifference)


def test_prompts_needed_with_a_zone_are_the_least_that_would_do():
    """Votes of exactly 0.5 never name a stage; the zone is reached where the same votes have halved the interval."""
    plain, zoned = Decision(4), Decision(4, indifference=0.1)
    for decision in (plain, zoned):
        for on in (3, 1, 2, 2):
            decision.update(on, 4 - on)
    assert plain.prompts_needed() is None
    needed = zoned.prompts_needed()
    assert zoned.stage == "undecided"
    for at in range(5, 2000):
        on = (3, 1, 2, 2)[at % 4]
        if zoned.update(on, 4 - on) != "undecided":
            break
    assert zoned.stage == "no practical difference"
    assert zoned.decided_at == pytest.approx(needed, abs=4)
    assert zoned.prompts_needed() == pytest.approx(needed, abs=4)
    with pytest.raises(BadData):
        zoned.update(5, 0)
