"""AlpacaEval from files to files: what is refused before any work, what is kept, and the command."""

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
from factory_alpaca import needs_client, needs_package, rows

from stagealign.base import server as serving
from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer, KeptAnswers
from stagealign.evaluate.alpaca_eval.rows import read

pytestmark = pytest.mark.usefixtures("own_home")


@needs_client
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "gpt-4"}, "--judge 'gpt-4': unknown; one of official"),
        ({"judge": "local:"}, "--judge 'local:': unknown"),
        ({"judge": "official:x"}, "unknown"),
        ({"judge": "judge:x", "judge_url": None, "spend": None}, "needs --judge-url"),
        ({"judge": "judge:x"}, "the price of 'x' is not known; add --price"),
        ({"judge": "local:x", "judge_url": None}, "--spend with --judge 'local:x'"),
        ({"spend": -1.0}, "--spend -1.0: not an amount"),
        ({"spend": math.nan}, "not an amount"),
    ],
)
def test_options_that_cannot_be(ask, server, changes, message):
    with pytest.raises(StagealignError, match=re.escape(message)):
        ask(**changes)
    assert server.seen == []


def test_the_official_judge_needs_a_key(files, monkeypatch):
    monkeypatch.delenv(serving.KEYS[1])
    with pytest.raises(StagealignError, match="no key found; set the environment variable"):
        alpaca.evaluate(alpaca.EvaluationRequest(*files(), judge="official"))


@needs_package
@needs_client
def test_a_price_that_is_none(ask, server):
    for price in ("10", "a,b", "1,-2", "1,inf"):
        with pytest.raises(StagealignError, match="IN,OUT expected"):
            ask(price=price)
    assert server.seen == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, b: ([*o, o[3]], b), r"outputs.json: 1 prompt ('Task 3: explain it.' (row 13)) found more than once"),
        (
            lambda o, b: (o, [*b, b[3]]),
            r"baseline.json: 1 prompt ('Task 3: explain it.' (row 13)) found more than once",
        ),
        (
            lambda o, b: (o, b[:-2]),
            "2 prompts ('Task 10: explain it.' (row 11), 'Task 11: explain it.' (row 12)) not in",
        ),
        (lambda o, b: (o[:-1], b), "1 of 12 prompts have no completion ('Task 11: explain it.')"),
        (
            lambda o, b: (o, [b[0] | {"output": None}, *b[1:]]),
            "completion of 1 prompt ('Task 0: explain it.' (row 1)) is",
        ),
        (lambda o, b: ([o[0] | {"output": 3}], b), "row 1, column 'output': a number found"),
        (lambda o, b: ([o[0] | {"output": "half \ud83d"}], b), "row 1, column 'output': half a character"),
        (lambda o, b: ([{"text": "x"}], b), "row 1: no column 'instruction'"),
        (lambda o, b: (o[:6] + rows(generator="two")[6:], b), "completions of 2 generators found (outputs, two)"),
        (lambda o, b: ([], b), "no rows"),
        (lambda o, b: (o, [row | {"prompt_index": 4} for row in b]), "prompt_index 4 found more than once"),
        (lambda o, b: (o, [row | {"prompt_index": "x"} for row in b]), "prompt_index 'x'; a whole number"),
    ],
)
def test_files_that_cannot_be_compared(files, change, message):
    """Before the judge is even looked for."""
    outputs, baseline = change(rows(generator="outputs"), rows(generator="baseline"))
    with pytest.raises(StagealignError, match=re.escape(message)):
        alpaca.evaluate(alpaca.EvaluationRequest(*files(outputs, baseline), judge="local:nowhere"))


def test_a_file_cut_in_half_or_missing(files):
    outputs, baseline = files()
    text = Path(outputs).read_text(encoding="utf-8")
    Path(outputs).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(StagealignError, match=r"outputs\.json"):
        read(outputs, baseline)
    with pytest.raises(StagealignError, match=r"nowhere\.json: no such file"):
        read("nowhere.json", baseline)
    with pytest.raises(StagealignError, match="no such file"):
        read("tatsu-lab/alpaca_eval", baseline)


def test_one_of_several_generators(files):
    outputs, baseline = files(rows(generator="a") + rows(quality="poor", generator="b"))
    assert read(outputs, baseline, "b").items[0].model == "poor text 0 by b"
    with pytest.raises(StagealignError, match=r"generator 'c' not found; it has a, b"):
        read(outputs, baseline, "c")


def test_kept_answers_survive_a_cut_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    kept = KeptAnswers(path)
    kept.add("a", JudgeAnswer(1.25, served="x", prompt_tokens=10, cost=0.1))
    kept.add("b", JudgeAnswer(1.5, served="x", prompt_tokens=10, cost=0.1))
    kept.add("c", JudgeAnswer(failed="no letter", prompt_tokens=10, cost=0.1))
    kept.add("d", JudgeAnswer(failed="no answer"))  # neither answered nor paid for
    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    path.write_bytes(whole[: whole.index(b"\n") + 20])
    found = KeptAnswers(path)
    assert (found.damaged, list(found.kept)) == (1, ["a"])
    found.add("b", JudgeAnswer(1.75, served="x"))
    again = KeptAnswers(path)
    assert again.get("a") == kept.get("a")
    assert again.get("b")["x"].preference == 1.75
    assert again.damaged == 1
    assert os.stat(path).st_mode & 0o077 == 0


@needs_package
def test_a_judge_prompt_or_text_of_another_kind_is_another_question(ask, server):
    ask()
    server.seen.clear()
    changed = rows(quality="good", generator="outputs")
    changed[4]["output"] += "!"
    ask(changed)
    assert server.asked == ["Task 4"]


@needs_package
def test_the_command_from_files_to_files(files, server, monkeypatch, capfd):
    from stagealign.cli import app as cli

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["stagealign", "alpaca-eval", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capfd.readouterr()
        return caught.value.code or 0, said.out, " ".join(said.err.split())

    outputs, baseline = files()
    words = (outputs, "--baseline", baseline, "--judge", "official", "--judge-url", server.url)
    code, out, err = call(*words, "--spend", "0")
    assert code == 0
    assert "no win rate, none of 12" in " ".join(out.split())
    assert "asking the judge about 12 of 12 prompts, 0 need no request; about" in err
    assert "OpenAI's price list" in err
    code, out, err = call(*words, "--spend", "1", "--json", "-", "--annotations", "table.jsonl")
    record = json.loads(out)
    assert (code, record["answered"], record["reliable"]) == (0, 12, True)
    table = [json.loads(line) for line in Path("table.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"prompt_index", "generator", "preference", "baseline_chars", "model_chars"} <= table[0].keys()
    assert [row["prompt_index"] for row in table] == list(range(12))
    assert sum(row["preference"] - 1 for row in table) / 12 * 100 == pytest.approx(record["win_rate"])
    server.seen.clear()
    code, out, err = call(*words)
    assert code == 0
    assert "win rate" in out
    assert server.seen == []  # all is kept: it costs nothing, so no limit is asked for
    code, _, err = call(*words, "--annotations", "table.xlsx")
    assert code == 2
    assert "unknown ending" in err
    code, _, err = call(*words[:4], "gpt")
    assert code == 2
    assert "--judge 'gpt': unknown" in err
