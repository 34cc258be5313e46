"""A judge that labels rounds of the grid is named by `run --judge-url`, and nothing starts without it."""

import re
from dataclasses import replace

import pytest
from factory_judge import PROXIES, Judge, running
from typer.testing import CliRunner

from benchmarks.faults import lab
from stagealign.cli.app import app
from stagealign.grid import scales
from stagealign.store.results import read_result


class Longer(Judge):
    """Prefers the longer text; of equal ones, the first."""

    def answer(self, request):
        text = request["messages"][0]["content"]
        a, b = (re.search(rf"<response_{x}>\n(.*?)\n</response_{x}>", text, re.DOTALL)[1] for x in "ab")
        choice = {"message": {"role": "assistant", "content": "A" if len(a) >= len(b) else "B"}}
        return {"model": self.name, "choices": [choice], "usage": {"total_tokens": 7}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs cells of the tiny scale with a preference whose oracle is given; exit code, output, and results folder."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    for table in (scales.SCALES, lab.cost.LENGTHS, lab.methods.METHODS, lab.models.CHECKPOINTS, lab.kinds.TASKS):
        monkeypatch.setitem(table, lab.SCALE, None)
    lab.install()

    def invoke(oracle, *words):
        tiny = scales.SCALES[lab.SCALE]
        scales.SCALES[lab.SCALE] = replace(tiny, preference=replace(tiny.preference, oracle=oracle))
        given = ["run", "--scale", lab.SCALE, "-k", "zephyr and dpo and 1on", "--seeds", "1", "--workers", "1"]
        done = CliRunner().invoke(app, [*given, "--results", str(tmp_path / "results"), *words])
        return done, tmp_path

    return invoke


def test_a_run_asks_the_judge_that_it_is_given(run):
    with running(Longer()) as judge:
        done, folder = run("judge:longer", "--judge-url", judge.url)
    assert done.exit_code == 0, done.output
    assert judge.seen, "the judge was asked"
    (file,) = (folder / "results").rglob("*.json")
    result = read_result(file)
    assert result["spec"]["scale"]["preference"]["oracle"] == "judge:longer"
    assert result["rounds"][0]["pairs"]["pairs"] > 0


@pytest.mark.parametrize(
    ("oracle", "words", "said"),
    [
        ("judge:longer", (), r"judge:longer labels the rounds: no server is named; add --judge-url URL"),
        ("letters", ("--judge-url", "http://127.0.0.1:9"), r"--judge-url http://127.0.0.1:9: nothing here asks a"),
    ],
)
def test_a_judge_without_a_server_or_a_server_without_a_judge_is_refused_before_work(run, oracle, words, said):
    done, folder = run(oracle, *words)
    assert done.exit_code != 0
    assert re.search(said, f"{done.output}{done.exception}"), done.output
    assert not list((folder / "home").rglob("record.json")), "nothing was built"
