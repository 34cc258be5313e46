"""The length-controlled win rate: by hand, against other optimisers, against what is published, and from bad files."""

import csv
import json
import math
import sys
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from stagealign.base.errors import BadData, CannotRun
from stagealign.cli import app as cli
from stagealign.cli import alpaca as show
from stagealign.evaluate.alpaca_eval.comparisons import (
    COLUMNS,
    WEIGHTS,
    read_comparisons,
    read_difficulty,
    read_weights,
)
from stagealign.evaluate.alpaca_eval.lc_win_rate import FITTED, NOT_THEIRS, NOTHING, OFFICIAL, PUBLISHED, lc_win_rates
from stagealign.evaluate.alpaca_eval.length_control import (
    LEARNED,
    PLAIN,
    Prior,
    Weights,
    features,
    fit,
    length_controlled,
    sampling_error,
    score,
)

DIFFICULTY = [-1.0, 0.5, 2.0, -0.3, 1.1, 0.0, -2.0, 0.9]


def simulated(n=805, seed=0, weights=(-1.7, 0.9, -1.0)):
    """Rows and outcomes of a generator with these true weights; outcomes are near 0 or 1, as the judge's are."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.5, n)
    rows = features(rng.integers(1000, 3000, n), rng.integers(100, 4000, n), difficulty)
    chance = 1 / (1 + np.exp(-rows @ np.array(weights)))
    return rows, np.where(rng.random(n) < chance, 0.98, 0.01)


def as_array(weights):
    return np.array([weights.length, weights.difficulty, weights.base])


# The numbers


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
    found = fit(rows, np.array([0.7, 0.9, 0.3, 0.5]), Prior(((0, 0), (0, 1)), (0, 0), 0))
    longer, shorter = math.log(0.8 / 0.2), math.log(0.4 / 0.6)
    assert as_array(found) == pytest.approx([(shorter - longer) / 2, 0, (longer + shorter) / 2], abs=1e-6)


def test_length_controlled_by_hand():
    chances = length_controlled(Weights(-9.0, 2.0, math.log(3)), np.array([0.0, -math.log(3) / 2]))
    assert chances == pytest.approx([75, 50])


def test_base_pull_by_hand():
    """Nothing but a base weight: n (p - y) = pull where all is lost, and 0 exactly where the pull is stronger."""
    rows = np.array([[0.0, 0, 1]] * 10)
    prior = Prior(((1, 0), (0, 1)), (0, 0), 0.2)
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
    assert score(rows, outcomes, Weights(*found))[2] == pytest.approx(-LEARNED.base_pull * np.sign(found[2]), abs=1e-3)


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
    assert sampling_error(rows[:1], outcomes[:1], Weights(0, 0, 0)) == math.inf


# Against what is published


@pytest.fixture(scope="module")
def published(shared_data):
    from benchmarks.length_control.published import read

    return read(shared_data / "alpaca_eval")


def test_published_weights_give_published_values(shared_data):
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    difficulty = np.array(list(read_difficulty(str(folder / "instruction_difficulty.csv")).values()))
    weights = read_weights(str(folder / "glm_weights.csv"))
    leaderboard = pd.read_csv(folder / "leaderboard.csv", index_col=0)
    complete = leaderboard[leaderboard["n_total"] == 805]["length_controlled_winrate"]
    assert len(complete) > 30
    for model, value in complete.items():
        assert length_controlled(Weights(*weights[model]), difficulty).mean() == pytest.approx(value, abs=1e-4)


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
        assert row.method == PUBLISHED
        assert row.lc_win_rate == pytest.approx(leaderboard["length_controlled_winrate"][row.generator], abs=1e-4)
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


# Files


def rows_of(generator="mine", preferences=(1.0, 1.9, 1.2, 1.0, 2.0, 1.1, 1.4, 1.0)):
    return [
        dict(zip(COLUMNS, (index, generator, value, 100 + index, 90 + 7 * index), strict=True))
        for index, value in enumerate(preferences)
    ]


def save(path, rows):
    """Rows as .csv, .jsonl or .parquet, by the name's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def difficulty(tmp_path):
    rows = [{"prompt_index": index, "instruction_difficulty": value} for index, value in enumerate(DIFFICULTY)]
    return save(tmp_path / "difficulty.csv", rows)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_formats_give_the_same_numbers(ending, tmp_path, difficulty):
    found = lc_win_rates(save(tmp_path / f"rows.{ending}", [*rows_of("a"), *rows_of("b")[::-1]]), difficulty)
    assert [row.generator for row in found] == ["a", "b"]
    assert found[0].lc_win_rate == found[1].lc_win_rate
    assert found[0].win_rate == pytest.approx(32.5)
    assert (found[0].n, found[0].failed, found[0].missing, found[0].method) == (8, 0, 0, FITTED)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_failed_judgment_is_counted_and_in_no_denominator(ending, tmp_path, difficulty):
    rows = rows_of(preferences=(1.0, math.nan, 2.0, 1.5, None, 1.5, 1.0))
    (found,) = lc_win_rates(save(tmp_path / f"rows.{ending}", rows), difficulty)
    assert (found.n, found.failed, found.missing) == (5, 2, 1)
    assert found.win_rate == pytest.approx(40)
    none = rows_of(preferences=(None, None))
    (found,) = lc_win_rates(save(tmp_path / f"none.{ending}", none), difficulty)
    assert (found.n, found.failed, found.win_rate, found.lc_win_rate, found.method) == (0, 2, None, None, NOTHING)


@pytest.mark.parametrize("chars", [0, 1, 10**7])
@pytest.mark.parametrize("preference", [1.0, 1.5, 2.0])
def test_extreme_answers_have_a_value(chars, preference, tmp_path, difficulty):
    rows = [row | {"model_chars": chars, "preference": preference} for row in rows_of()]
    (found,) = lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty)
    assert 0 <= found.lc_win_rate <= 100
    (one,) = lc_win_rates(save(tmp_path / "one.csv", rows[:1]), difficulty)
    assert (one.n, one.standard_error, one.lc_standard_error, one.lc_sampling_error) == (1, None, None, None)
    assert 0 <= one.lc_win_rate <= 100


def test_the_baseline_itself_is_at_fifty(tmp_path, difficulty):
    weights = [{"": "baseline", **dict.fromkeys(WEIGHTS, 0.0)}]
    save(tmp_path / "glm_weights.csv", weights)
    rows = [row | {"model_chars": row["baseline_chars"], "preference": 1.5} for row in rows_of("baseline")]
    (found,) = lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty, fit_all=True)
    assert found.method == FITTED
    assert found.lc_win_rate == pytest.approx(50, abs=1)


def changed(at, **values):
    rows = rows_of()
    rows[at] |= values
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt_index": 1, "preference": 1}],
            "no column generator, baseline_chars, model_chars; found: prompt_index",
        ),
        ([*rows_of(), *rows_of()[:2]], r"2 rows repeat a generator's prompt: mine on prompt 0 \(row 9\), mine on pro"),
        (changed(3, prompt_index=900), "1 prompts have no difficulty: prompt_index 900; the difficulty file has 8"),
        (changed(3, preference=2.01), r"1 of 8 rows cannot be used: preference outside 1 \(baseline\) to 2 .*row 4"),
        (changed(3, preference=0.0), "preference outside 1"),
        (changed(3, preference=math.inf), "preference 'inf' is not finite"),
        (changed(3, preference="m"), "preference 'm' is not a number"),
        (changed(3, model_chars=""), r"no model_chars: 1 \(row 4\)"),
        (changed(3, model_chars=-1), "a negative number of characters"),
        (changed(3, prompt_index=1.5), "prompt_index 1.5 is not a whole number"),
        (changed(3, generator=" "), "no generator"),
    ],
)
def test_what_cannot_be_used_is_named(rows, message, tmp_path, difficulty):
    with pytest.raises(BadData, match=message):
        lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", "no rows"),
        ("rows.csv", ",".join(COLUMNS) + "\n", "no rows"),
        ("rows.csv", ",".join(COLUMNS) + "\n0,mine,1.0\n", "more or fewer cells than the header"),
        ("rows.jsonl", '{"prompt_index": 0', "line 1: not JSON"),
        ("rows.parquet", "PAR1 and no more", "not a sound parquet file"),
        ("rows.txt", "x", "unknown ending"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path, difficulty):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=message):
        lc_win_rates(path, difficulty)


def test_difficulties_and_weights_are_checked_too(tmp_path, difficulty):
    bad = tmp_path / "bad.csv"
    rows = save(tmp_path / "rows.csv", rows_of())
    for text, message in (
        ("index,difficulty\n0,1\n", "no column instruction_difficulty; found: index, difficulty"),
        ("prompt,instruction_difficulty\n0,1\n", "no column prompt_index; found: prompt, instruction_difficulty"),
        (",instruction_difficulty\n0,1\n0,2\n", "prompt_index 0 found again"),
        ("prompt_index,instruction_difficulty\n0,1\n0,2\n", "prompt_index 0 found again"),
        ("prompt_index,instruction_difficulty\n0,nan\n", "instruction_difficulty 'nan' is not finite"),
        ("prompt_index,instruction_difficulty\n", "no rows"),
    ):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(BadData, match=message):
            lc_win_rates(rows, bad)
    bad.write_text("name,weight\nmine,1\n", encoding="utf-8")
    with pytest.raises(BadData, match=r"no column np\.tanh"):
        lc_win_rates(rows, difficulty, bad)
    with pytest.raises(BadData, match="no such file"):
        read_comparisons(str(tmp_path / "nowhere.csv"), {0: 0.0})
    with pytest.raises(BadData, match="no such file"):
        read_comparisons("nowhere/data", {0: 0.0})


# The command


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, output and error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stagealign", "lc-win-rate", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code or 0, said.out, said.err

    return run


def test_the_command_prints_a_table_or_json(tmp_path, difficulty, call):
    rows = save(tmp_path / "rows.csv", [*rows_of("[bold]mine"), *rows_of("gaps", (1.0, 1.5, None, 2.0))])
    code, out, _ = call(rows, "--difficulty", difficulty)
    assert code == 0
    assert "[bold]mine" in out
    assert "32.50 +-" in out
    assert "gaps: 1 failed judgments and 4 missing prompts left out." in out
    code, out, _ = call(rows, "--difficulty", difficulty, "--json", "-")
    first, _ = json.loads(out)
    assert first["generator"] == "[bold]mine"
    assert first["method"] == FITTED
    assert {"n", "win_rate", "lc_win_rate", "standard_error"} < first.keys()
    code, printed, _ = call(rows, "--difficulty", difficulty, "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == json.loads(out)
    assert "32.50 +-" in printed
    assert not list(tmp_path.glob("*.part"))


def test_the_table_is_sorted_by_lc_win_rate_and_fits_80_columns(tmp_path, difficulty, call, monkeypatch):
    names = ("Some-Model-8x22B-Instruct-v0", "winner", "nothing judged")
    rows = [*rows_of(names[0]), *rows_of(names[1], (2.0, 1.9, 1.8, 1.9)), *rows_of(names[2], (None, None))]
    monkeypatch.setattr(show.console, "width", 80)
    _, out, _ = call(save(tmp_path / "rows.csv", rows), "--difficulty", difficulty)
    body = out.partition("n: judged prompts")[0].splitlines()
    shown = [line.split()[0] for line in body if line.strip().startswith(names)]
    assert shown == [names[1], names[0], "nothing"]
    assert max(map(len, body)) <= 80
    (line,) = [line for line in body if names[0] in line]
    assert line.split()[-1] == "fit"
    assert "by: fit, fitted; -, no judged rows." in out
    _, out, _ = call("--help")
    assert "sorted by the latter" in " ".join(out.split())


def test_a_mistake_is_one_message(tmp_path, difficulty, call):
    rows = save(tmp_path / "rows.csv", rows_of())
    code, _, said = call(tmp_path / "absent.csv", "--difficulty", difficulty)
    assert (code, "no such file" in said) == (2, True)
    code, _, said = call(rows, "--difficulty", difficulty, "--json", tmp_path / "no" / "out.json")
    assert (code, "no folder" in said) == (2, True)
    code, _, said = call(rows)
    assert (code, "--difficulty" in said) == (2, True)


# The official function


@pytest.fixture
def gamed(tmp_path, monkeypatch):
    """The official function with made-up rows in place of the hub's; gives its module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate", reason="the extra eval is not installed")
    rng, rows = np.random.default_rng(0), []
    for side in (1, -1):
        for index, value in enumerate(DIFFICULTY * 20):
            t = side * abs(rng.normal(0.8, 0.5))
            chance = 1 / (1 + math.exp(1.9 * math.tanh(t)))
            rows.append((index, "gamed", chance, t, value, False))
    names = ("index", "model", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
    path = save(tmp_path / "df_gamed.csv", [dict(zip(names, row, strict=True)) for row in rows])
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(path))
    return glm


def test_the_official_function_is_called_and_leaves_nothing_behind(gamed, tmp_path):
    import sklearn

    values = (DIFFICULTY * 20)[:160]
    difficulties = [{"prompt_index": index, "instruction_difficulty": value} for index, value in enumerate(values)]
    difficulty = save(tmp_path / "difficulty.csv", difficulties)
    rng = np.random.default_rng(1)
    rows = rows_of(preferences=tuple(rng.choice([1.01, 1.98], 160)))
    (found,) = lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty, use_official=True)
    assert found.method == OFFICIAL
    assert found.n == 160
    (own,) = lc_win_rates(tmp_path / "rows.csv", difficulty)
    assert found.lc_win_rate == pytest.approx(own.lc_win_rate, abs=10)  # other gamed rows than those learned from
    assert sklearn.get_config()["enable_metadata_routing"] is False
    from pathlib import Path

    assert not (Path(gamed.__file__).parent / "weights").exists()


def test_without_the_hub_or_the_package_the_message_says_so(gamed, tmp_path, difficulty, monkeypatch):
    rows = save(tmp_path / "rows.csv", rows_of())

    def unreachable(**_):
        raise FileNotFoundError("no connection\nand more")

    monkeypatch.setattr(gamed, "hf_hub_download", unreachable)
    with pytest.raises(CannotRun, match=r"df_gamed\.csv.*no connection.*leave --official out"):
        lc_win_rates(rows, difficulty, use_official=True)
    monkeypatch.setitem(sys.modules, "alpaca_eval.metrics", None)
    with pytest.raises(CannotRun, match="alpaca_eval cannot be imported"):
        lc_win_rates(rows, difficulty, use_official=True)
