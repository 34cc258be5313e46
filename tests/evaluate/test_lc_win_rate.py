"""`stagealign lc-win-rate`: files of judged comparisons, good and bad, the command, and the official function."""

import csv
import json
import math
import sys
import warnings

import numpy as np
import pytest

from stagealign.base.errors import BadData, CannotRun
from stagealign.cli import alpaca as show
from stagealign.cli import app as cli
from stagealign.evaluate.alpaca_eval.comparisons import (
    COLUMNS,
    WEIGHTS,
    read_comparisons,
)
from stagealign.evaluate.alpaca_eval.lc_win_rate import FITTED, NOTHING, OFFICIAL, lc_win_rates

DIFFICULTY = [-1.0, 0.5, 2.0, -0.3, 1.1, 0.0, -2.0, 0.9]


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
    (found,) = lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty, preference_scale="1-2")
    assert 0 <= found.lc_win_rate <= 100
    (one,) = lc_win_rates(save(tmp_path / "one.csv", rows[:1]), difficulty, preference_scale="1-2")
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
        (changed(3, prompt_index=1.5), "prompt_index 1.5 is not a whole number"),
        (changed(3, generator=" "), "no generator"),
    ],
)
def test_what_cannot_be_used_is_named(rows, message, tmp_path, difficulty):
    with pytest.raises(BadData, match=message):
        lc_win_rates(save(tmp_path / "rows.csv", rows), difficulty)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"preference": 2.01}, "preference outside 1 (baseline) to 2 (model): 1 (row 4)"),
        ({"preference": -1}, "preference outside 1 (baseline) to 2 (model): 1 (row 4)"),
        ({"preference": math.inf}, "no preference: 1 (row 4)"),
        ({"preference": None}, "no preference: 1 (row 4)"),
        ({"preference": "left"}, "preference that is no number: 1 (row 4)"),
        ({"model_chars": ""}, "no model_chars: 1 (row 4)"),
        ({"model_chars": -1}, "a negative number of characters: 1 (row 4)"),
    ],
)
def test_one_odd_judgment_is_counted_and_moves_no_other(odd, reason, tmp_path, difficulty):
    (found,) = lc_win_rates(save(tmp_path / "rows.csv", changed(3, **odd)), difficulty)
    assert (found.n, found.failed, found.missing, found.failures) == (7, 1, 0, (reason,))
    assert found.win_rate == pytest.approx(100 * (sum((1.0, 1.9, 1.2, 2.0, 1.1, 1.4, 1.0)) / 7 - 1))
    assert "unreliable: 1 of 8 judgments failed, more than 1%" in found.warnings


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
        ("question,instruction_difficulty\n0,1\n", "no column prompt_index; found: question, instruction_difficulty"),
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
        read_comparisons(str(tmp_path / "nowhere.csv"))
    with pytest.raises(BadData, match="no such file"):
        read_comparisons("nowhere/data")


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
    assert line.split()[-1] == "fit!"
    assert "by: fit, fitted; -, no judged rows; !, with a warning below." in out
    assert f"{names[0]}: LC is not usable: 8 judged prompts, fewer than 100." in out
    _, out, _ = call("--help")
    assert "length-controlled win rates (AlpacaEval 2)" in " ".join(out.split())


def test_a_mistake_is_one_message(tmp_path, difficulty, call):
    rows = save(tmp_path / "rows.csv", rows_of())
    code, _, said = call(tmp_path / "absent.csv", "--difficulty", difficulty)
    assert (code, "no such file" in said) == (2, True)
    code, _, said = call(rows, "--difficulty", difficulty, "--json", tmp_path / "no" / "out.json")
    assert (code, "no folder" in said) == (2, True)
    code, _, said = call(rows, "--difficulty", difficulty, "--preference-scale", "0-2")
    assert (code, "--preference-scale: '0-2' found; write 1-2" in said) == (2, True)


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
