"""The length-controlled win rate: by hand, against other optimisers, against what is published."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from stagealign.evaluate.alpaca_eval.comparisons import read_weights
from stagealign.evaluate.alpaca_eval.difficulty import read_difficulty
from stagealign.evaluate.alpaca_eval.lc_win_rate import BY_ROW, FITTED, NOT_THEIRS, PUBLISHED, lc_win_rates
from stagealign.evaluate.alpaca_eval.length_control import (
    LEARNED,
    PLAIN,
    LengthPrior,
    LengthWeights,
    features,
    fit,
    length_controlled,
    sampling_error,
    score,
)


def simulated(n=805, seed=0, weights=(-1.7, 0.9, -1.0)):
    """Rows and outcomes of a generator with these true weights; outcomes are near 0 or 1, as the judge's are."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.5, n)
    rows = features(rng.integers(1000, 3000, n), rng.integers(100, 4000, n), difficulty)
    chance = 1 / (1 + np.exp(-rows @ np.array(weights)))
    return rows, np.where(rng.random(n) < chance, 0.98, 0.01)


def as_array(weights):
    return np.array([weights.length, weights.difficulty, weights.base])


def test_features_by_hand():
    """Differences 2, 0, -2 have the standard deviation 2 (n - 1): tanh of 1, 0, -1."""
    rows = features([5, 7, 1], [3, 7, 3], [0.1, 0.2, 0.3])
    t = math.tanh(1)
    assert rows == pytest.approx(np.array([[t, 0.1, 1], [0, 0.2, 1], [-t, 0.3, 1]]))


def test_where_all_differences_are_equal_only_their_sign_is_left():
    assert features([4, 5], [1, 2], [0, 0])[:, 0].tolist() == [1, 1]
    assert features([4, 5], [4, 5], [0, 0])[:, 0].tolist() == [0, 0]
    assert features([4], [9], [0])[:, 0].tolist() == [-1]


def test_two_by_two_fit_by_hand():
    """Without difficulty and prior the model is saturated: longer 0.8, shorter 0.4, so base is their mean logit."""
    rows = np.array([[-1.0, 0, 1], [-1, 0, 1], [1, 0, 1], [1, 0, 1]])
    found = fit(rows, np.array([0.7, 0.9, 0.3, 0.5]), LengthPrior(((0, 0), (0, 1)), (0, 0), 0))
    longer, shorter = math.log(0.8 / 0.2), math.log(0.4 / 0.6)
    assert as_array(found) == pytest.approx([(shorter - longer) / 2, 0, (longer + shorter) / 2], abs=1e-6)


def test_length_controlled_by_hand():
    chances = length_controlled(LengthWeights(-9.0, 2.0, math.log(3)), np.array([0.0, -math.log(3) / 2]))
    assert chances == pytest.approx([75, 50])


def test_base_pull_by_hand():
    """Nothing but a base weight: n (p - y) = pull where all is lost, and 0 exactly where the pull is stronger."""
    rows = np.array([[0.0, 0, 1]] * 10)
    prior = LengthPrior(((1, 0), (0, 1)), (0, 0), 0.2)
    lost = fit(rows, np.zeros(10), prior)
    assert lost.base == pytest.approx(math.log(0.02 / 0.98), abs=1e-5)
    won = fit(rows, np.ones(10), prior)
    assert won.base == pytest.approx(-lost.base, abs=1e-5)
    assert fit(rows, np.full(10, 0.51), prior).base == 0
    assert fit(rows, np.full(10, 0.53), prior).base == pytest.approx(math.log(0.51 / 0.49), abs=1e-6)


def test_plain_fit_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rows, outcomes = simulated()
    twice, labels = np.concatenate([rows, rows]), np.repeat([1, 0], len(rows))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(twice, labels, sample_weight=np.concatenate([outcomes, 1 - outcomes]))
    assert as_array(fit(rows, outcomes, PLAIN)) == pytest.approx(model.coef_[0], abs=1e-5)


@pytest.mark.parametrize("weights", [(-1.7, 0.9, -1.0), (-0.9, 0.6, 0.8), (-2.2, 1.0, -4.5), (-1.0, 0.6, 5.0)])
def test_fit_with_the_prior_agrees_with_a_search_without_gradients(weights):
    rows, outcomes = simulated(weights=weights)
    curvature, slope = np.array(LEARNED.curvature), np.array(LEARNED.slope)

    def loss(w):
        logits = rows @ w
        own = np.logaddexp(0, logits).sum() - outcomes @ logits
        return own + w[:2] @ curvature @ w[:2] / 2 + slope @ w[:2] + LEARNED.base_pull * abs(w[2])

    found = as_array(fit(rows, outcomes))
    other = minimize(loss, [-1, 1, 0.1], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 9999})
    assert found == pytest.approx(other.x, abs=1e-4)
    assert score(rows, outcomes, LengthWeights(*found))[2] == pytest.approx(
        -LEARNED.base_pull * np.sign(found[2]), abs=1e-3
    )


@pytest.mark.parametrize("prior", [LEARNED, PLAIN])
@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_model_that_lost_or_won_everything_has_a_value(outcome, prior):
    rows, _ = simulated(50)
    value = length_controlled(fit(rows, np.full(50, outcome), prior), rows[:, 1]).mean()
    assert value == pytest.approx(100 * outcome, abs=2)


def test_outcomes_must_be_shares():
    for outcomes in ([], [0.5, 1.2], [math.nan, 0]):
        with pytest.raises(ValueError, match="give at least one"):
            fit(np.zeros((len(outcomes), 3)), np.array(outcomes))


def test_a_share_of_the_rows_has_that_share_of_the_prior():
    half = LEARNED.for_rows(402)
    assert half.slope[0] == pytest.approx(LEARNED.slope[0] * 402 / 805)
    assert half.curvature[0][1] == half.curvature[1][0]
    assert LEARNED.for_rows(805) == LEARNED.for_rows(2000) == LEARNED


def test_sampling_error_agrees_with_the_bootstrap():
    rows, outcomes = simulated(seed=3)
    rng, draws = np.random.default_rng(0), []
    for _ in range(200):
        chosen = rng.integers(len(rows), size=len(rows))
        again = rows[chosen]
        draws.append(length_controlled(fit(again, outcomes[chosen]), again[:, 1]).mean())
    assert sampling_error(rows, outcomes, fit(rows, outcomes)) == pytest.approx(np.std(draws), rel=0.15)
    assert sampling_error(rows[:1], outcomes[:1], LengthWeights(0, 0, 0)) == math.inf


@pytest.fixture(scope="module")
def published(shared_data):
    from benchmarks.length_control.published import read

    return read(shared_data / "alpaca_eval")


def test_published_weights_give_published_values(shared_data):
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    difficulty = np.array(list(read_difficulty(str(folder / "instruction_difficulty.csv")).by_index.values()))
    weights = read_weights(str(folder / "glm_weights.csv"))
    leaderboard = pd.read_csv(folder / "leaderboard.csv", index_col=0)
    complete = leaderboard[leaderboard["n_total"] == 805]["length_controlled_winrate"]
    assert len(complete) > 30
    for model, value in complete.items():
        assert length_controlled(LengthWeights(*weights[model]), difficulty).mean() == pytest.approx(value, abs=1e-4)


def test_cross_validated_error_is_within_the_aim(published):
    """Mean absolute error at most 0.7 points, bias within 0.2: each model with constants learned without it."""
    from benchmarks.length_control.__main__ import error, without

    prior_for = without(published)
    errors = np.array([error(model, prior_for(model)) for model in published])
    assert len(errors) == 29
    assert np.abs(errors).mean() < 0.25
    assert abs(errors.mean()) < 0.2
    complete = np.array([not model.missing for model in published])
    assert np.abs(errors[complete]).max() < 0.2
    assert abs(errors[complete].mean()) < 0.02
    by_row = np.array([error(model, prior_for(model), by_row=True) for model in published])
    assert np.abs(by_row).max() < 0.2


def test_the_package_has_the_constants_that_the_benchmark_learns(published):
    from pathlib import Path

    from benchmarks.length_control.__main__ import constants
    from benchmarks.length_control.published import learn
    from stagealign.evaluate.alpaca_eval import length_prior

    assert Path(length_prior.__file__).read_text(encoding="utf-8") == constants(learn(published))


def test_the_published_error_takes_weights_as_exact(published):
    known = [model for model in published if model.lc_standard_error == model.lc_standard_error]
    assert known
    for model in known:
        chances = length_controlled(model.weights, model.rows[:, 1])
        assert chances.std(ddof=1) / math.sqrt(len(chances)) == pytest.approx(model.lc_standard_error, abs=1e-6)
        ours = sampling_error(model.rows, model.outcomes, fit(model.rows, model.outcomes))
        assert ours > 1.5 * model.lc_standard_error


def test_half_of_the_prompts_estimates_the_whole_without_bias(published):
    rng, off = np.random.default_rng(0), []
    for model in published:
        whole = length_controlled(fit(model.rows, model.outcomes), model.rows[:, 1]).mean()
        chosen = rng.permutation(len(model.rows))
        for half in (chosen[::2], chosen[1::2]):
            rows, outcomes = model.rows[half], model.outcomes[half]
            prior = LEARNED.for_rows(len(half))
            off.append(length_controlled(fit(rows, outcomes, prior), rows[:, 1]).mean() - whole)
    assert abs(np.mean(off)) < 0.25
    assert np.abs(off).mean() < 1.5


def test_a_published_model_is_told_by_its_rows_and_not_by_its_name(shared_data, tmp_path):
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    difficulty = folder / "instruction_difficulty.csv"
    table = pd.read_parquet(folder / "gpt4_turbo_preferences.parquet")
    leaderboard = pd.read_csv(folder / "leaderboard.csv", index_col=0)
    every = lc_win_rates(folder / "gpt4_turbo_preferences.parquet", difficulty)
    assert len(every) == 29
    for row in every:
        value = row.lc_win_rate if row.missing == 0 else row.official_lookup  # by row, as it was published
        assert row.method == (PUBLISHED if row.missing == 0 else BY_ROW)
        assert value == pytest.approx(leaderboard["length_controlled_winrate"][row.generator], abs=1e-4)
        assert row.win_rate == pytest.approx(leaderboard["win_rate"][row.generator], abs=1e-8)
        assert row.standard_error == pytest.approx(leaderboard["standard_error"][row.generator], abs=1e-8)
        assert (row.official_lookup is None) == (row.missing == 0)
    one = table[table["generator"] == "vicuna-7b"].sample(frac=1, random_state=0)
    one.to_parquet(tmp_path / "one.parquet")  # alone in its file, in another order
    (alone,) = lc_win_rates(tmp_path / "one.parquet", difficulty)
    assert alone == next(row for row in every if row.generator == "vicuna-7b")
    one.assign(generator="claude-2.1").to_parquet(tmp_path / "other.parquet")
    (other,) = lc_win_rates(tmp_path / "other.parquet", difficulty)
    assert other.method == NOT_THEIRS
    (fitted,) = lc_win_rates(tmp_path / "one.parquet", difficulty, fit_all=True)
    assert fitted.method == FITTED
    assert fitted.lc_win_rate == other.lc_win_rate == pytest.approx(alone.lc_win_rate, abs=0.1)
    one[one["prompt_index"] != 0].to_parquet(tmp_path / "gap.parquet")
    (gap,) = lc_win_rates(tmp_path / "gap.parquet", difficulty, fit_all=True)
    assert gap.lc_win_rate == pytest.approx(fitted.lc_win_rate, abs=0.1)
    assert gap.official_lookup > gap.lc_win_rate + 0.5
