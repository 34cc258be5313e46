"""Each statistic by hand, and against scipy where it has a counterpart."""

import math

import numpy as np
import pytest

from stagealign.stats.effectiveness import (
    _no_ratio,
    best_rung,
    effectiveness_ratio,
    gain_at_kl,
    matched_kl,
    ratio_at_matched_kl,
)
from stagealign.stats.statistics import (
    as_columns,
    mean_metric,
    mean_over_seeds,
    paired_gain,
    percentiles,
    pooled_score,
    proportion,
    resample,
    smallest_visible,
    spearman,
    t_quantile,
)


def rng():
    return np.random.default_rng(0)


def table(values):
    return {f"p{number}": float(value) for number, value in enumerate(values)}


def noisy(mean, n=60, seed=0, spread=0.1):
    return table(mean + spread * np.random.default_rng(seed).normal(size=n))


def test_mean_by_hand():
    # 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12) = 0.6455, t(3) = 3.182
    metric = mean_metric([1, 2, 3, 4], "points")
    assert metric["value"] == 2.5
    assert metric["standard_error"] == pytest.approx(0.6455, abs=1e-4)
    assert metric["interval"] == pytest.approx([2.5 - 3.182 * 0.6455, 2.5 + 3.182 * 0.6455], abs=5e-3)
    assert (metric["unit"], metric["n"]) == ("points", 4)


def test_one_value_has_no_interval():
    assert mean_metric([0.3], "share") == {
        "value": 0.3,
        "unit": "share",
        "n": 1,
        "standard_error": None,
        "interval": None,
    }


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing_or_of_what_is_not_a_number(values):
    message = r"^1 of \d values are not finite; count" if values else "^no values; a mean needs"
    with pytest.raises(ValueError, match=message):
        mean_metric(values, "points")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 23, 63, 804])
def test_t_quantile_against_scipy(degrees):
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


A_AND_S = {(1, 1): 4, (5, 16, 3): 96, (3, 19, 17, -15): 384, (79, 776, 1482, -1920, -945): 92160}
"""Abramowitz and Stegun 26.7.5: coefficients of odd powers of z, from the highest down, and what divides them."""


@pytest.mark.parametrize("degrees", [3, 4, 9])
def test_t_quantile_is_the_published_expansion(degrees):
    z = 1.959963984540054
    series = [z * np.polyval(powers, z**2) / over for powers, over in A_AND_S.items()]
    expected = z + sum(term / degrees**power for power, term in enumerate(series, 1))
    assert t_quantile(degrees) == pytest.approx(expected, rel=1e-12)


def test_mean_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = rng().normal(size=50)
    expected = stats.t.interval(0.95, 49, loc=values.mean(), scale=stats.sem(values))
    assert mean_metric(list(values), "points")["interval"] == pytest.approx(list(expected), rel=1e-5)


def test_proportion_against_scipy_and_by_hand():
    stats = pytest.importorskip("scipy.stats")
    for k, n in ((7, 12), (0, 5), (5, 5), (400, 805)):
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert proportion(k, n)["interval"] == pytest.approx([expected.low, expected.high], abs=1e-9)
    assert proportion(7, 12)["interval"] == pytest.approx([0.320, 0.807], abs=1e-3)
    with pytest.raises(ValueError, match="3 of 2"):
        proportion(3, 2)
    with pytest.raises(ValueError, match="0 of 0: not a share"):
        proportion(0, 0)
    assert proportion(1, 1)["value"] == 1


def test_proportion_as_it_is_written_down():
    found = proportion(3, 10)
    assert found.keys() == {"value", "unit", "n", "standard_error", "interval"}
    assert (found["value"], found["unit"], found["n"]) == (0.3, "share", 10)
    assert found["standard_error"] == pytest.approx(math.sqrt(0.021))


def test_paired_gain_joins_by_prompt_and_never_by_position():
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt(3)
    after, before = {"a": 2.0, "b": 3.0, "c": 4.0}, {"c": 1.0, "b": 1.0, "a": 1.0}
    gain = paired_gain(after, before, "reward")
    assert gain["value"] == 2
    assert gain["standard_error"] == pytest.approx(1 / math.sqrt(3))
    assert gain["unit"] == "reward"


def test_paired_gain_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    before, after = noisy(0.0, seed=1), noisy(0.2, seed=2)
    expected = stats.ttest_rel([after[key] for key in before], list(before.values())).confidence_interval()
    assert paired_gain(after, before, "reward")["interval"] == pytest.approx([expected.low, expected.high], rel=1e-5)


def test_missing_prompts_are_counted_on_either_side():
    message = "2 of the hashes before are missing after, 1 of those after are missing before"
    with pytest.raises(ValueError, match=message):
        paired_gain({"a": 1, "d": 1}, {"a": 1, "b": 1, "c": 1}, "reward")


def test_ratio_of_constant_gains_is_exact():
    ratio = effectiveness_ratio([table([1.5] * 5)] * 2, [table([0.5] * 5)] * 2, rng())
    assert ratio["value"] == pytest.approx(3)
    assert ratio["interval"] == pytest.approx([3, 3])
    assert ratio["difference"]["value"] == pytest.approx(1)
    assert (ratio["seeds"], ratio["reason"], ratio["n"]) == (2, None, 10)


def test_no_ratio_where_the_denominator_meets_zero_or_is_a_loss():
    on = [noisy(1.0)]
    near = effectiveness_ratio(on, [noisy(0.0, seed=1)], rng())
    assert near["value"] is None
    assert near["interval"] is None
    assert "cannot be told from 0" in near["reason"]
    assert near["difference"]["interval"][0] > 0
    loss = effectiveness_ratio(on, [noisy(-1.0, seed=1)], rng())
    assert loss["value"] is None
    assert "is a loss" in loss["reason"]


def test_one_seed_agrees_with_scipy_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    on, off = noisy(0.5, seed=3, spread=0.5), noisy(0.9, seed=4, spread=0.5)
    x, y = (np.array(list(gains.values())) for gains in (on, off))
    expected = stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    low, high = expected.confidence_interval
    ratio = effectiveness_ratio([on], [off], rng())
    assert ratio["value"] == pytest.approx(x.mean() / y.mean())
    assert ratio["interval"] == pytest.approx([low, high], abs=0.02)
    assert ratio["standard_error"] == pytest.approx(expected.standard_error, rel=0.08)


def test_same_prompts_for_both_sources():
    """Gains that differ by a constant have a difference without error, whatever the spread over prompts."""
    off = noisy(1.0, spread=2.0)
    on = {prompt: gain + 0.25 for prompt, gain in off.items()}
    difference = effectiveness_ratio([on], [off], rng())["difference"]
    assert difference["value"] == pytest.approx(0.25)
    assert difference["standard_error"] == pytest.approx(0, abs=1e-9)


def test_spread_between_seeds_stands_beside_the_error_over_prompts():
    # seeds' means 1 and 2: standard deviation sqrt(1/2); within a seed nothing varies
    summary = mean_over_seeds([table([1.0] * 4), table([2.0] * 4)], "reward", rng())
    assert summary["value"] == 1.5
    assert summary["between_seeds"] == pytest.approx(math.sqrt(0.5))
    assert summary["over_prompts"] == 0
    assert summary["interval"] == pytest.approx([1, 2])
    assert mean_over_seeds([table([1.0, 2.0])], "reward", rng())["between_seeds"] is None


def test_prompts_that_seeds_share_are_drawn_together():
    """Ten seeds that agree on every prompt know no more about the prompts than one."""
    gains = noisy(1.0, spread=1.0)
    one, ten = (mean_over_seeds([gains] * seeds, "reward", rng())["standard_error"] for seeds in (1, 10))
    assert ten == pytest.approx(one, rel=0.1)
    others = [{f"{seed}-{prompt}": gain for prompt, gain in gains.items()} for seed in range(10)]
    assert mean_over_seeds(others, "reward", rng())["standard_error"] < 0.5 * one


SEEDS = {
    "shared prompts": ([noisy(1.0, seed=1), noisy(1.3, seed=2)], [noisy(0.5, seed=3), noisy(0.6, seed=4)]),
    "other prompts": (
        [noisy(1.0, n=9, seed=1), noisy(1.3, n=11, seed=2)],
        [noisy(0.5, n=9, seed=3), noisy(0.6, n=11, seed=4)],
    ),
}


@pytest.mark.parametrize("case", SEEDS)
def test_a_ratio_holds_the_gains_it_is_made_of(case):
    """From the same generator the same draws: each source as alone, the difference as gains of its own."""
    on, off = SEEDS[case]
    ratio = effectiveness_ratio(on, off, rng())
    keys = {"value", "unit", "n", "standard_error", "interval", "reason", "seeds", "on", "off", "difference"}
    assert ratio.keys() == keys
    assert ratio["unit"] == "ratio"
    apart = [{prompt: gain - low[prompt] for prompt, gain in high.items()} for high, low in zip(on, off, strict=True)]
    for name, gains in {"on": on, "off": off, "difference": apart}.items():
        alone = mean_over_seeds(gains, "reward", rng())
        assert ratio[name].pop("unit") == alone.pop("unit") == "reward"
        interval = alone.pop("interval")
        assert ratio[name].pop("interval") == pytest.approx(interval), name
        assert ratio[name] == pytest.approx(alone), name
    assert effectiveness_ratio(on, off, rng(), "points")["difference"]["unit"] == "points"
    tables = [as_columns(high, low) for high, low in zip(on, off, strict=True)]
    samples = resample(tables, case == "shared prompts", rng())
    assert ratio["standard_error"] == pytest.approx((samples[:, 0] / samples[:, 1]).std(ddof=1), rel=1e-9)
    assert mean_over_seeds(on, "", rng())["standard_error"] == pytest.approx(samples[:, 0].std(ddof=1), rel=1e-9)


def test_no_ratio_has_no_error_and_no_interval_either():
    none = effectiveness_ratio([noisy(1.0)], [noisy(0.0, seed=1)], rng())
    assert (none["value"], none["standard_error"], none["interval"], none["unit"]) == (None, None, None, "ratio")


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([0.0, 1.0], "off-policy gain +0.50 cannot be told from 0"),
        ([-1.0, 0.0], "off-policy gain +0.50 cannot be told from 0"),
        ([-2.0, -1.0], "off-policy gain +0.50 is a loss, so a ratio of gains says nothing"),
        ([0.1, 1.0], None),
    ],
)
def test_a_ratio_needs_a_denominator_above_zero(interval, words):
    assert _no_ratio({"value": 0.5, "interval": interval}) == words


def test_mean_over_seeds_as_it_is_written_down():
    """Seeds of 4 and 2 prompts: errors over prompts 0.5 / sqrt(3) and 1."""
    found = mean_over_seeds([table([0.0, 0.0, 1.0, 1.0]), {"x": 1.0, "y": 3.0}], "reward", rng())
    keys = {"value", "unit", "n", "standard_error", "interval", "seeds", "between_seeds", "over_prompts"}
    assert found.keys() == keys
    assert (found["unit"], found["n"], found["seeds"]) == ("reward", 6, 2)
    assert found["over_prompts"] == pytest.approx((0.5 / math.sqrt(3) + 1.0) / 2)
    alone = mean_over_seeds([table([0.0, 1.0]), {"x": 1.0}], "reward", rng())
    assert alone["over_prompts"] is None, "one prompt alone has no spread"


def test_resampling_draws_seeds_and_then_their_own_prompts():
    """Three seeds of one prompt each, 0, 1 and 10: a draw is the mean of three of these."""
    tables = [np.array([[value]]) for value in (0.0, 1.0, 10.0)]
    for crossed in (True, False):
        samples = resample(tables, crossed, rng())[:, 0]
        assert samples.shape == (2000,)
        assert {round(3 * one) for one in samples} == {
            a + b + c for a in (0, 1, 10) for b in (0, 1, 10) for c in (0, 1, 10)
        }
        assert samples.mean() == pytest.approx(11 / 3, abs=0.2)
    assert resample([np.array([[2.0], [4.0]])], False, rng()).mean() == pytest.approx(3, abs=0.1)
    with pytest.raises(ValueError, match=r"^no seeds; give at least one table of gains$"):
        resample([], True, rng())


def test_bounds_leave_as_much_on_either_side():
    assert percentiles(np.arange(101.0)) == pytest.approx([2.5, 97.5])


def test_rank_correlation_by_hand():
    pytest.importorskip("scipy")
    assert spearman([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 7, 6]) == 0.964  # 1 - 6 x 2 / (7 x 48)
    assert spearman([1.0, 2.0, 3.0], [9.0, 4.0, 1.0]) == -1


def test_seeds_must_be_joined_before():
    with pytest.raises(ValueError, match="2 seeds on-policy, 1 off-policy"):
        effectiveness_ratio([table([1])] * 2, [table([1])], rng())


def test_seeds_may_have_different_prompts_but_sources_may_not():
    seeds = [table([1.0, 1.0]), {"x": 1.0, "y": 1.0, "z": 1.0}]
    assert effectiveness_ratio(seeds, seeds, rng())["value"] == 1
    with pytest.raises(ValueError, match="prompts differ"):
        effectiveness_ratio([table([1.0, 1.0])], [table([1.0])], rng())


def test_same_generator_same_numbers():
    on, off = [noisy(0.5)], [noisy(1.0, seed=1)]
    assert effectiveness_ratio(on, off, rng()) == effectiveness_ratio(on, off, rng())


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        on, off = table(chance.normal(0.5, 0.5, 60)), table(chance.normal(1.0, 0.5, 60))
        low, high = effectiveness_ratio([on], [off], chance)["interval"]
        hits += low <= 0.5 <= high
    assert 88 <= hits <= 100


def test_gain_at_kl_by_hand():
    ladder = [(8.0, 1.0), (4.0, 0.8)]
    assert gain_at_kl(ladder, 2.0) == pytest.approx(0.4)  # half-way from the origin
    assert gain_at_kl(ladder, 6.0) == pytest.approx(0.9)
    assert gain_at_kl(ladder, 8.0) == 1.0
    assert gain_at_kl(ladder, 0.0) == 0.0
    assert gain_at_kl(ladder, 8.1) is None
    assert gain_at_kl(ladder, -1.0) is None
    assert gain_at_kl([(0.0, -1.0), (1.0, 2.0)], -0.5) is None
    assert gain_at_kl([(1.0, 3.0), (2.0, 1.0)], 1.5) == pytest.approx(2.0)


def test_ratio_at_matched_kl_by_hand():
    # off reaches KL 5 with gain 1; on has 0.6 at KL 4 and 1.0 at KL 12, so 0.65 at KL 5
    off = [[(2.0, table([0.5] * 4)), (5.0, table([1.0] * 4))]]
    on = [[(4.0, table([0.6] * 4)), (12.0, table([1.0] * 4))]]
    ratio = ratio_at_matched_kl(on, off, rng())
    assert ratio["kl"] == matched_kl(on, off) == 5.0
    assert ratio["value"] == pytest.approx(0.65)
    assert ratio["on"]["unit"] == "reward"
    assert ratio_at_matched_kl(on, off, rng(), "points")["on"]["unit"] == "points"
    one = [[(5.0, table([0.5, 0.7]))]]
    assert ratio_at_matched_kl(one, one, rng())["value"] == pytest.approx(1)
    alone = [[(5.0, table([0.5]))]]
    with pytest.raises(ValueError, match="prompts differ"):
        ratio_at_matched_kl([[(1.0, table([1.0])), (2.0, table([1.0, 2.0]))]], alone, rng())


def test_matched_kl_is_within_reach_of_every_seed():
    ladders = [[(3.0, table([1.0]))], [(2.0, table([1.0]))]]
    assert matched_kl(ladders, [[(9.0, table([1.0]))]] * 2) == 2.0


def test_best_rung_looks_at_validation_only():
    assert best_rung({1e-4: [0.2, 0.4], 3e-4: [0.5, 0.0]}) == 1e-4
    assert best_rung({1e-4: [0.2], 3e-4: [0.2]}) == 1e-4
    with pytest.raises(ValueError, match=r"^no rung to choose from"):
        best_rung({})


def test_pooled_score_adds_both_variances():
    # half-widths 0.0588 = 1.96 x 0.03; spread of 0.3 and 0.4: variance 0.005; error sqrt((0.0009 + 0.005) / 2)
    pooled = pooled_score([0.3, 0.4], [[0.2412, 0.3588], [0.3412, 0.4588]])
    assert pooled["value"] == pytest.approx(0.35)
    assert pooled["standard_error"] == pytest.approx(math.sqrt(0.0059 / 2), rel=1e-3)
    one = pooled_score([0.3], [[0.2412, 0.3588]])
    assert one["interval"] == pytest.approx([0.2412, 0.3588], abs=1e-4)
    assert one["between_seeds"] is None
    assert pooled.keys() == {"value", "unit", "n", "standard_error", "interval", "between_seeds"}
    assert (pooled["unit"], pooled["n"]) == ("share", 2)
    assert pooled["between_seeds"] == pytest.approx(math.sqrt(0.005))
    assert pooled_score([0.98], [[0.9, 1.0]])["interval"][1] == 1.0


def test_a_score_without_an_interval_adds_no_error():
    assert pooled_score([0.3, 0.5], [None, None])["standard_error"] == pytest.approx(0.1)
    certain = pooled_score([0.5, 0.5], [None, None])
    assert (certain["standard_error"], certain["interval"]) == (0.0, None)


def test_smallest_visible_difference():
    assert smallest_visible(1.0) == pytest.approx(1.96 + 0.8416, abs=1e-3)
    assert smallest_visible(0.5) == pytest.approx((1.96 + 0.8416) / 2, abs=1e-3)
