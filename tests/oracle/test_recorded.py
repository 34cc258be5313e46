"""Recorded judgments: both forms in every format, bad files, pairs that go in a circle, and rows that add up."""

import math
import subprocess
import sys
import tracemalloc

import pytest
from factory_files import FORMATS, file, refused

from stagealign.oracle.recorded import RecordedOracle, votes_by_prompt
from stagealign.oracle.recorded_file import read_recorded
from stagealign.scoring.contest import Contest
from stagealign.stats.votes import cross_votes, pair_votes


def votes(tmp_path, rows, ending="jsonl", **options):
    return {item.prompt: item[1:] for item in votes_by_prompt(read_recorded(file(tmp_path, rows, ending), **options))}


def score(prompt, source, value, completion="text"):
    return {"prompt": prompt, "source": source, "completion": completion, "score": value}


SCORES = [
    *[score("p", "on", 3.0), score("p", "on", 1.0), score("p", "off", 2.0), score("p", "off", 1.0, "")],
    *[score("q", "off", 1.0), score("q", "on", 1.0), score("q", "off", 0.5)],
]


@pytest.mark.parametrize("ending", FORMATS)
def test_votes_of_recorded_scores(tmp_path, ending):
    # p: 3 beats 2 and 1, 1 loses to 2 and ties with 1; q: 1 ties with 1 and beats 0.5, and ties for the top
    assert votes(tmp_path, SCORES, ending) == {"p": (2.5, 1.5, 1, 1.0, 0.0), "q": (1.5, 0.5, 1, 0.5, 0.5)}


def test_recorded_scores_are_counted(tmp_path):
    rows = [
        *SCORES,
        score("only on", "on", 1.0),
        *[score("failed", "on", math.nan), score("failed", "off", 1.0)],
        *[score("null", "on", 1.0), score("null", "off", None)],
        *[score("endless", "on", 1.0), score("endless", "off", math.inf)],
        *[score("", "on", 1.0), score("p", "off", 1.0, None), score("p", None, 1.0)],
    ]
    recorded = read_recorded(file(tmp_path, rows))
    assert (recorded.given, recorded.used, recorded.failures, recorded.form) == (17, 7, 3, "scores")
    assert recorded.most_votes == 4
    assert dict(recorded.drops) == {
        "prompt without candidates of source 'off'": 1,
        "prompt with a failed score": 6,
        "empty `prompt`": 1,
        "`completion` is null": 1,
        "`source` is null": 1,
    }
    (item,) = [item for item in recorded.prompts if item.prompt == "q"]
    assert item.contest == Contest("q", ("text",), ("text", "text"))
    assert item.judged.off == (1.0, 0.5)
    few = read_recorded(file(tmp_path, SCORES), prompts=1)
    assert (len(few.prompts), few.used + few.not_chosen) == (1, 7)


def pair(prompt, a, b, preference):
    return {"prompt": prompt, "a": a, "b": b, "preference": preference}


PAIRS = [
    *[pair("p", "x", "s", 1.0), pair("p", "t", "x", 0.0), pair("p", "y", "s", 0.5), pair("p", "y", "t", 0.9)],
    *[pair("q", "x", "s", 1.0), pair("q", "s", "x", 1.0)],
]


@pytest.mark.parametrize("ending", FORMATS)
def test_recorded_oracle(tmp_path, ending):
    oracle = RecordedOracle(read_recorded(file(tmp_path, PAIRS, ending)))
    contests = [Contest("p", ("x", "y"), ("s", "t")), Contest("q", (" x\n",), ("s",)), Contest("q", ("x",), ("x",))]
    oracle.check(contests)
    one, two, three = oracle.judge(contests)
    # x beats s and t; y ties with s and beats t
    assert one.won == (1.0, 1.0, 0.5, 1.0)
    assert (one.on, one.off) == ((1.0, 0.75), (0.25, 0.0))
    assert (one.compared, one.failed) == (0, None)
    assert (two.on == two.off, two.compared, two.changed) == (True, 1, 1)  # each order for its first
    assert three.on == three.off
    assert oracle.identity["kind"] == "recorded"
    assert len(oracle.identity["sha256"]) == 16


def test_recorded_pairs_in_a_circle_or_failed(tmp_path):
    """X beats s, s beats y, y beats t, t beats x: no scores say so, and each pair still votes for itself."""
    circle = [pair("p", "x", "s", "a"), pair("p", "s", "y", "A"), pair("p", "y", "t", "a"), pair("p", "x", "t", "b")]
    failed = [pair("f", "x", "s", math.nan), pair("g", "x", "s", None), pair("g", "s", "x", "tie")]
    recorded = read_recorded(file(tmp_path, circle + failed))
    assert (recorded.given, recorded.used, recorded.failures, dict(recorded.drops)) == (7, 5, 1, {"failed judgment": 2})
    contests = [Contest("p", ("x", "y"), ("s", "t")), Contest("f", ("x",), ("s",)), Contest("g", ("x",), ("s",))]
    one, two, three = RecordedOracle(recorded).judge(contests)
    assert (one.failed, one.won) == (None, (1.0, 0.0, 0.0, 1.0))
    assert (one.on, one.off) == ((0.5, 0.5), (0.5, 0.5))
    assert pair_votes(one.won) == (2.0, 2.0, 0)
    assert "failed" in two.failed
    assert two.on == two.won == ()
    assert three.failed is None
    assert (three.on == three.off, three.won) == (True, (0.5,))


def test_pairs_keep_votes_that_scores_lose(tmp_path):
    """X beats s and loses to t, y loses to both: one vote of four, where the scores of x and s tie and count half."""
    rows = [pair("p", "x", "s", "a"), pair("p", "x", "t", "b"), pair("p", "y", "s", "b"), pair("p", "y", "t", "b")]
    (found,) = RecordedOracle(read_recorded(file(tmp_path, rows))).judge([Contest("p", ("x", "y"), ("s", "t"))])
    assert (found.on, found.off, found.won) == ((0.5, 0.0), (0.5, 1.0), (1.0, 0.0, 0.0, 0.0))
    assert pair_votes(found.won) == (1.0, 3.0, 0)
    assert cross_votes(found.on, found.off) == (0.5, 3.5, 1)


def test_pairs_that_are_not_recorded(tmp_path):
    oracle = RecordedOracle(read_recorded(file(tmp_path, PAIRS)))
    contests = [
        Contest("p", ("x", "new"), ("s", "t")),
        Contest("other" * 40, ("x",), ("s",)),
        Contest("q", ("x",), ("s",)),
    ]
    words = ("3 of 6 pairs", "of 2 of 3 prompts", "'p' with 'new' and 's'", "'new' and 't'", "...")
    refused(lambda: oracle.check(contests), *words)
    refused(lambda: list(oracle.judge(contests)), "2 of 4 pairs")


def test_alpaca_eval_scale(tmp_path):
    rows = [pair("p", "x", "s", 1.0), pair("q", "x", "s", 1.3), pair("r", "x", "s", 1.5), pair("t", "x", "s", 2)]
    contests = [Contest(name, ("x",), ("s",)) for name in "pqrt"]
    judged = RecordedOracle(read_recorded(file(tmp_path, rows, "csv"))).judge(contests)
    assert [(item.on > item.off) - (item.on < item.off) for item in judged] == [1, 1, 0, -1]


BAD_RECORDED = {
    "what": (pair("p", "x", "s", "left"), "line 3, column 'preference': 'left' found", "0.5 (tie)"),
    "truth": (pair("p", "x", "s", True), "line 3, column 'preference': True found"),
    "range": (pair("p", "x", "s", 3), "line 3, column 'preference': 3 found"),
    "minus": (pair("p", "x", "s", -1), "-1 found"),
    "list": (pair("p", "x", "s", [1]), "[1] found"),
    "huge": (pair("p", "x", "s", 10**400), "10000"),
    "scales": (pair("p", "x", "s", 2), "0.2 in line 1 and 2 in line 3 belong to different scales"),
}


@pytest.mark.parametrize("case", BAD_RECORDED)
def test_preferences_that_could_mean_anything(tmp_path, case):
    row, *words = BAD_RECORDED[case]
    path = file(tmp_path, [pair("p", "x", "s", 0.2), pair("p", "x", "s", 1), row])
    refused(lambda: read_recorded(path), path, *words)


def test_bad_recorded_files(tmp_path):
    def read(*rows):
        return lambda: votes_by_prompt(read_recorded(file(tmp_path, list(rows))))

    refused(read({"prompt": "p", "a": "x"}), "column b, preference missing; found: prompt, a;")
    refused(read({"prompt": "p", "source": "on", "score": 1}), "column completion missing")
    refused(read(score("p", "on", 1.0) | pair("p", "x", "s", 1)), "both recorded forms")
    refused(read(score("p", "policy", 1.0)), "line 1, column 'source': 'policy' found; write 'on'")
    refused(read(score("p", "on", "good")), "line 1, column 'score': 'good' found")
    refused(read(score("p", "on", 1.0)), "none of 1 lines can be used; prompt without candidates of source 'off': 1")
    refused(read(pair("p", "x", "s", None)), "none of 1 lines can be used; failed judgment: 1")
    refused(read(pair("p", "x", "s", 1)), "without the sources of their texts")
    refused(lambda: RecordedOracle(read_recorded(file(tmp_path, SCORES))), "scores found")
    refused(lambda: read_recorded(tmp_path / "none.csv"), "no such file")
    refused(lambda: read_recorded("org/name"), "no such file")


def test_recorded_path_starts_without_heavy_libraries():
    heavy = {"torch", "transformers", "datasets", "pandas", "pyarrow"}
    code = f"import sys, stagealign.oracle.recorded_file; print(*sorted({heavy!r} & set(sys.modules)))"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_memory_does_not_grow_with_text(tmp_path):
    def peak(count, length):
        rows = [
            score(f"{i} {'p' * length}", source, 1.0, "x" * length) for i in range(count) for source in ("on", "off")
        ]
        path = file(tmp_path, rows)
        del rows
        tracemalloc.start()
        try:
            recorded = read_recorded(path)
            assert len(recorded.prompts) == count
            assert sum(len(item.on[0][0]) for item in recorded.prompts) == count * length
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2_000, 4_000) < peak(2_000, 40) + 300_000
    assert peak(4_000, 40) - peak(2_000, 40) < 2_000 * 600
