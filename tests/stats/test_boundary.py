"""The boundary meter: votes and scores by hand, coverage and error rate in small samples, symmetry, recorded data."""

import math
import os
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.boundary.world import world_at
from stagealign.base.errors import BadData
from stagealign.stats.decision import BETS, SHARES, Decision, _log_capital, log_payoffs
from stagealign.stats.statistics import t_quantile
from stagealign.stats.streams import first_decisions
from stagealign.stats.votes import BoundaryScore, boundary_score, cross_votes, pair_votes, stage_of, top_vote

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4)
vote = st.integers(0, 4).map(lambda on: (float(on), float(4 - on)))
prompts = st.lists(vote, min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("on", "off", "votes", "top"),
    [
        ([2, 1], [0, -1], (4, 0, 0), (1, 0)),
        ([3, 0], [2, 1], (2, 2, 0), (1, 0)),
        ([1, 0], [1, 0], (2, 2, 2), (0.5, 0.5)),
        ([1, 1], [1, 0], (3, 1, 2), (0.5, 0.5)),
        ([0], [1, 2, 0], (0.5, 2.5, 1), (0, 1)),
        ([math.inf], [math.inf, -math.inf], (1.5, 0.5, 1), (0.5, 0.5)),
    ],
)
def test_votes_by_hand(on, off, votes, top):
    assert cross_votes(on, off) == votes
    assert top_vote(on, off) == top


@given(scores, scores)
def test_swapping_the_sources_swaps_the_votes(on, off):
    for_on, for_off, ties = cross_votes(on, off)
    assert cross_votes(off, on) == (for_off, for_on, ties)
    assert for_on + for_off == len(on) * len(off)
    assert for_on == sum((a > b) + 0.5 * (a == b) for a, b in product(on, off))
    assert top_vote(off, on) == top_vote(on, off)[::-1]


@pytest.mark.parametrize(
    ("won", "votes"),
    [
        ([1.0, 0.7, 0.5, 0.0], (2.5, 1.5, 1)),
        ([0.5, 0.5], (1.0, 1.0, 2)),
        ([0.0], (0.0, 1.0, 0)),
        ([0.49, 0.51], (1.0, 1.0, 0)),
    ],
)
def test_votes_of_pairs_by_hand(won, votes):
    assert pair_votes(won) == votes


@pytest.mark.parametrize(
    ("won", "message"),
    [
        ([], "^scores of pairs: none"),
        ([math.nan], "^scores of pairs: 1 of 1"),
        ([0.5, 1.5], r"^shares of pairs won \[0.5, 1.5\]: outside of 0 to 1$"),
        ([-0.1], r"^shares of pairs won \[-0.1\]: outside"),
    ],
)
def test_unusable_votes_of_pairs_are_refused(won, message):
    with pytest.raises(BadData, match=message):
        pair_votes(won)


@pytest.mark.parametrize("reading", [cross_votes, top_vote])
@pytest.mark.parametrize(("on", "message"), [([], "none"), ([1.0, math.nan], "1 of 2 not a number")])
def test_unusable_scores_are_refused(reading, on, message):
    with pytest.raises(BadData, match=f"scores of on: {message}"):
        reading(on, [1.0])
    with pytest.raises(BadData, match="scores of off"):
        reading([1.0], on)


def test_score_by_hand():
    found = boundary_score([(4, 0), (3, 1), (1, 3), (2, 2)])
    assert (found.score, found.prompts, found.votes_on, found.votes_off) == (10 / 16, 4, 10, 6)
    # Shares 1, .75, .25, .5 around .625: squares .140625 + .015625 + .140625 + .015625 = .3125.
    assert found.standard_error == pytest.approx(math.sqrt(0.3125 / 3 / 4))
    design = (0.3125 + 0.125) / (3 * 0.625 * 0.375 + 0.125)
    t, n = t_quantile(3), 4 / design
    for end in found.interval:  # Wilson's ends: where the score is t errors away, the error taken at the end itself
        assert abs(end - found.score) == pytest.approx(t * math.sqrt(end * (1 - end) / n))
    assert found.stage == "undecided"


def test_votes_of_unequal_prompts_are_summed():
    found = boundary_score([(4, 0), (0, 1), (1, 1)])
    assert found.score == 5 / 7
    errors = np.array([4 - 20 / 7, -5 / 7, 1 - 10 / 7])
    assert found.standard_error == pytest.approx(math.sqrt((errors**2).sum() / 6) * 3 / 7)


def test_one_prompt_says_nothing():
    found = boundary_score([(4, 0)])
    assert found == BoundaryScore(1.0, None, (0.0, 1.0), 1, 4.0, 0.0)
    assert found.stage == "undecided"
    assert boundary_score([(1, 3)]) == BoundaryScore(0.25, None, (0.0, 1.0), 1, 1.0, 3.0)


@pytest.mark.parametrize("votes", [[(4, 0)] * 20, [(2, 2)] * 20])
def test_prompts_that_all_vote_alike_leave_some_doubt(votes):
    found = boundary_score(votes)
    assert found.standard_error == 0
    assert 0.05 < found.interval[1] - found.interval[0] < 0.2
    assert found.interval[0] <= found.score <= found.interval[1]


@given(prompts)
def test_swapping_on_and_off_mirrors_the_score(votes):
    one, other = boundary_score(votes), boundary_score([(off, on) for on, off in votes])
    assert other.score == pytest.approx(1 - one.score)
    assert other.interval == pytest.approx((1 - one.interval[1], 1 - one.interval[0]))
    assert 0 <= one.interval[0] <= one.score <= one.interval[1] <= 1
    assert boundary_score(votes[::-1]).interval == pytest.approx(one.interval)


@pytest.mark.parametrize(
    ("score", "stage"), [(0.0, "injection"), (0.4999, "injection"), (0.5, "fine-tuning"), (0.66, "fine-tuning")]
)
def test_point_rule_of_the_paper(score, stage):
    assert stage_of(score) == stage


def test_stage_by_interval():
    assert boundary_score([(3, 1), (4, 0)] * 10).stage == "fine-tuning"
    assert boundary_score([(1, 3), (0, 4)] * 10).stage == "injection"


@pytest.mark.parametrize("votes", [[], [(0, 0)], [(1, 0), (0, 0)], [(1, 0), (-1, 2)], [(math.nan, 1)], [(math.inf, 1)]])
def test_unusable_votes_are_refused(votes):
    with pytest.raises(BadData, match=r"^votes"):
        boundary_score(votes)


@pytest.mark.parametrize(("score", "correlation"), [(0.3, 1 / 3), (0.5, None), (0.7, 1 / 3), (0.1, 1 / 3)])
@pytest.mark.parametrize("count", [30, 100])
def test_coverage_in_small(score, correlation, count):
    votes = world_at(score, correlation).votes(np.random.default_rng(1), (1000, count))
    found = [boundary_score(one).interval for one in votes]
    assert 0.93 <= np.mean([low <= score <= high for low, high in found]) <= 0.975


def test_bets_are_fair_at_the_score_itself():
    assert SHARES.sum() == pytest.approx(1)
    assert (BETS < 1).all()
    votes = np.array([(on, 4 - on) for on in range(5)], dtype=float)
    law = np.array([0.1, 0.2, 0.3, 0.3, 0.1])
    mean = law @ votes[:, 0] / 4
    assert np.tensordot(law, np.exp(log_payoffs(votes, 4, mean)), axes=1) == pytest.approx(1)


def test_decision_by_hand():
    # All votes on: each prompt multiplies the upper capitals by 1 + bet; 20 = 1 / alpha is reached after 6.
    capital = [float(SHARES @ (1 + BETS) ** count) for count in range(10)]
    needed = next(count for count, value in enumerate(capital) if value >= 20)
    decision = Decision(most_votes=4)
    stages = [decision.update(4, 0) for _ in range(needed)]
    assert stages == ["undecided"] * (needed - 1) + ["fine-tuning"]
    assert decision.prompts == decision.decided_at == needed == 6
    assert decision.prompts_needed() == needed
    low, high = decision.interval
    assert (decision.score, high, decision.consistent) == (1, 1, True)
    # Each end of the interval takes half of alpha, so it is a little wider than the decision needs.
    assert SHARES @ (1 + BETS * (1 / low - 1)) ** needed == pytest.approx(40, rel=1e-3)
    assert 0.4 < low < 0.5
    for _ in range(2):
        decision.update(4, 0)
    assert (decision.decided_at, decision.interval[0] > 0.5) == (needed, True)


@settings(max_examples=30)
@given(prompts)
def test_decision_mirrors(votes):
    one, other = Decision(4), Decision(4)
    for on, off in votes:
        one.update(on, off)
        other.update(off, on)
    assert other.interval == pytest.approx((1 - one.interval[1], 1 - one.interval[0]), abs=1e-6)
    names = {"injection": "fine-tuning", "fine-tuning": "injection", "undecided": "undecided"}
    assert other.stage == names[one.stage]


@pytest.mark.parametrize("score", [0.62, 0.38])
def test_decision_equals_the_many_streams_form(score):
    votes = world_at(score).votes(np.random.default_rng(2), (20, 120))
    at, sign = first_decisions(votes, 4)
    for stream, when, side in zip(votes, at, sign, strict=True):
        decision = Decision(4)
        stages = [decision.update(on, off) for on, off in stream]
        named = [place for place, stage in enumerate(stages, 1) if stage != "undecided"]
        assert (named[0] if named else 0) == when
        assert {"undecided": 0, "fine-tuning": 1, "injection": -1}[decision.stage] == side


def test_a_named_stage_stays_and_interval_only_shrinks():
    decision, before = Decision(4), (0.0, 1.0)
    for on, off in [*[(4, 0)] * 12, *[(0, 4)] * 10]:
        decision.update(on, off)
        low, high = decision.interval
        assert before[0] <= low <= high <= before[1]
        before = decision.interval
    assert decision.stage == "fine-tuning"
    assert decision.consistent
    for _ in range(200):
        decision.update(0, 4)
    assert decision.stage == "fine-tuning"
    assert decision.consistent is False


def test_order_of_prompts_matters_only_to_when_one_looks():
    votes = [(3, 1), (2, 2), (4, 0), (1, 3), (2, 2)]
    ends = []
    for order in (votes, votes[::-1]):
        decision = Decision(4)
        for on, off in order:
            decision.update(on, off)
        ends.append(decision.prompts_needed())
    assert ends[0] == ends[1]


def test_fewer_votes_than_most_move_less():
    full, half = Decision(4), Decision(4)
    for _ in range(6):
        full.update(4, 0)
        half.update(2, 0)
    assert full.interval[0] > half.interval[0] > 0


@pytest.mark.parametrize("votes", [(0, 0), (3, 2), (-1, 3)])
def test_decision_refuses_unusable_votes(votes):
    decision = Decision(4)
    with pytest.raises(BadData, match="votes"):
        decision.update(*votes)
    assert decision.prompts == 0
    assert decision.prompts_needed() is None


@pytest.mark.parametrize(("most_votes", "alpha"), [(0, 0.05), (math.inf, 0.05), (4, 0), (4, 1)])
def test_decision_refuses_unusable_settings(most_votes, alpha):
    with pytest.raises(ValueError, match=r"most_votes|alpha"):
        Decision(most_votes, alpha)


@pytest.mark.parametrize("score", [0.49, 0.51])
def test_wrong_decisions_near_the_boundary_in_small(score):
    votes = world_at(score).votes(np.random.default_rng(3), (400, 400))
    _, sign = first_decisions(votes, 4)
    assert np.mean(sign == (1 if score < 0.5 else -1)) <= 0.05


def test_ends_of_the_sequence_hold_at_every_look():
    world, missed = world_at(0.7), 0
    for stream in world.votes(np.random.default_rng(4), (80, 40)):
        decision = Decision(4)
        for on, off in stream:
            decision.update(on, off)
        missed += not decision.interval[0] <= 0.7 <= decision.interval[1]
    assert missed <= 4  # 5% of 80


@pytest.mark.parametrize(("gap", "aim"), [(0.1, 85), (0.25, 20)])
def test_prompts_needed(gap, aim):
    at, sign = first_decisions(world_at(0.5 - gap).votes(np.random.default_rng(5), (500, 500)), 4)
    assert np.median(np.where(at > 0, at, 501)) <= aim
    assert not (sign > 0).any()


def test_prompts_needed_is_said_when_the_budget_ends():
    decision = Decision(4)
    assert decision.prompts_needed() is None
    for on in (3, 2, 1, 4, 2, 3, 1, 3, 2, 3):  # score 0.6
        decision.update(on, 4 - on)
    assert decision.stage == "undecided"
    needed = decision.prompts_needed()
    assert needed is not None
    assert 40 <= needed <= 120
    for on in (2, 1, 2, 1, 0, 1, 2, 1, 3, 3):  # 0.5 in all
        decision.update(on, 4 - on)
    assert decision.score == 0.5
    assert decision.prompts_needed() is None


@pytest.mark.parametrize(
    ("votes", "most", "alpha"),
    [
        ([(3, 1), (4, 0), (2, 2)], 4, 0.05),
        ([(3, 1), (1, 3), (3, 1)], 4, 0.05),
        ([(1, 3), (2, 2), (2, 2), (2, 2)], 4, 0.01),
        ([(1, 0)], 1, 0.05),
        ([(1, 0)], 1, 0.01),
        ([(3, 1)], 4, 0.05),
        ([(0, 1)], 1, 0.9),
        ([(1, 0)] * 5 + [(0, 1)] * 4, 1, 0.2),
    ],
)
def test_prompts_needed_are_the_least_that_would_do(votes, most, alpha):
    """Capital on the better side after `prompts` equal votes, to compare with a search that counts up from one."""
    decision = Decision(most, alpha)
    for one in votes:
        decision.update(*one)
    rates = log_payoffs(votes, most).mean(axis=0)
    capital = (np.log(np.exp(count * rates) @ SHARES).max() for count in range(1, 100_000))
    least = next(count for count, log in enumerate(capital, 1) if log >= math.log(1 / alpha))
    found = decision.prompts_needed()
    assert isinstance(found, int)
    assert found == least


@pytest.mark.parametrize(
    ("interval", "stage"),
    [
        ((0.5, 0.9), "fine-tuning"),
        ((0.1, 0.5), "injection"),
        ((0.49, 0.51), "undecided"),
        ((0.0, 1.0), "undecided"),
    ],
)
def test_an_interval_that_ends_at_a_half_has_ruled_it_out(interval, stage):
    assert BoundaryScore(0.5, 0.1, interval, 9, 4.5, 4.5).stage == stage


def test_a_capital_is_not_lost_beside_a_much_larger_one():
    assert _log_capital(np.array([[-2000.0] * len(SHARES), [0.0] * len(SHARES)])) == pytest.approx([-2000.0, 0.0])


def test_no_number_of_ties_would_do():
    decision = Decision(4)
    decision.update(2, 2)
    assert decision.prompts_needed() is None


def test_recorded_preferences_of_real_models():
    pytest.importorskip("pandas")
    from benchmarks.boundary import recorded

    folder = recorded.data_folder()
    if isinstance(folder, str):
        pytest.skip(folder)
    found = recorded.measure(folder, seed=0, orders=1, static=None)
    assert len(found["models"]) == 29
    assert found["spearman"] >= 0.95
    assert found["wrong_orders"] == 0
    named = [row for row in found["models"] if row["stage"] != "undecided"]
    assert len(named) >= 25
    assert all(row["stage"] == stage_of(row["score"]) for row in named)


def test_absent_recorded_preferences_give_a_reason(tmp_path, monkeypatch):
    from benchmarks.boundary import recorded

    monkeypatch.setitem(os.environ, "STAGEALIGN_SHARED", str(tmp_path))
    assert "gpt4_turbo_preferences.parquet" in str(recorded.data_folder())
