"""The speed benchmark runs every row on thin models, counts what it says it counts, and stops where sides differ."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.speed import rows, turns
from benchmarks.speed.turns import Given
from stagealign.report.pages.aims import BY_KEY, ROWS

ROOT = Path(__file__).resolve().parents[1]
SMALL = Given(threads=1, repeats=1, small=True)


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def here(monkeypatch):
    """Sides run in this process: their memory then means nothing, but they need not import torch a hundred times."""
    pytest.importorskip("torch")
    pytest.importorskip("trl")

    def child(function, given, **more):
        name, _, function = function.partition(":")
        found = getattr(import_module(name), function)(given, **json.loads(json.dumps(more)))
        return json.loads(json.dumps({**found, "peak_mb": 100}))

    for name in ("turns", "roof", "training", "reference", "sweep", "sampling", "votes", "start", "growth"):
        monkeypatch.setattr(import_module(f"benchmarks.speed.{name}"), "child", child)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return child


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the peers' own: what they warn of is theirs to mend
@pytest.mark.parametrize("key", [key for key in rows.of_device("cpu") if key not in ("start", "votes-answers")])
def test_a_small_run_of_each_row(key, here, tmp_path):
    """All but `start`, whose times are those of commands, and `votes-answers`, `votes-reviews` on long text."""
    result = rows.measure(key, SMALL)
    rows.write(tmp_path / f"{key}.json", result)
    assert rows.ready(tmp_path / f"{key}.json", key, SMALL)
    assert not rows.ready(tmp_path / f"{key}.json", key, Given(threads=2, repeats=1, small=True))
    row = BY_KEY[key]
    for runs in result.get("runs", {}).values():
        assert all(run["seconds"] > 0 < run["per_second"] for run in runs)
    sides = {(one.ours, one.peer) for one in row.against if "bf16" not in one.ours or "ours bf16" in result["runs"]}
    assert {(one["ours"], one["peer"]) for one in result.get("ratios", [])} == sides
    assert all(one["time"]["least"] == one["time"]["most"] > 0 for one in result.get("ratios", []))
    assert set(result.get("times", ())) == {name for name, _ in row.limits}
    if row.growth:
        assert len(result["points"]) == 2
        assert set(result["exponents"]) == {"seconds", "cpu_seconds", "peak_mb"}
    assert result["roof"]["float32_gflops"] > 0 < result["roof"]["copy_gbs"]
    text = "\n".join(rows.lines(result, "cpu"))
    assert row.title in text
    assert "roof:" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_runs_the_reference_once_and_says_so(here, tmp_path):
    from benchmarks.speed import sweep

    grid = [(form, beta, 0) for form in ("sigmoid", "hinge") for beta in (0.05, 0.1)]
    one = sweep.build(SMALL, 4, tmp_path / "one", grid[:1])
    four = sweep.build(SMALL, 4, tmp_path / "four", grid)
    assert one["recorded_forwards"] == four["recorded_forwards"] == 2 * 4
    assert one["reference_calls"] == four["reference_calls"] == 1, "four pairs are one micro-batch"
    assert one["reference_tokens"] == four["reference_tokens"] > 0
    peer = sweep.side(SMALL, peer=True, pairs=4)
    assert peer["reference_calls"] == peer["work"] == 2, "TRL: each run its own, all pairs in one batch"


@pytest.mark.filterwarnings("ignore")
def test_sides_that_differ_are_not_compared(here, monkeypatch):
    from benchmarks.speed import votes

    plainly = votes.plainly
    monkeypatch.setattr(votes, "plainly", lambda oracle, texts: [one + 0.01 for one in plainly(oracle, texts)])
    with pytest.raises(AssertionError, match="scores of the two sides differ"):
        votes.reward(SMALL)


def test_ratios_count_work_and_turns():
    theirs = [{"seconds": 10.0, "cpu_seconds": 8.0, "work": 5}, {"seconds": 30.0, "cpu_seconds": 8.0, "work": 5}]
    ours = [{"seconds": 4.0, "cpu_seconds": 4.0, "work": 10}, {"seconds": 6.0, "cpu_seconds": 4.0, "work": 10}]
    found = turns.compared(theirs, ours)
    assert found["time"] == {"median": 7.5, "least": 5.0, "most": 10.0}  # 2 s against 0.4 s, 6 s against 0.6 s
    assert found["processor"] == {"median": 4.0, "least": 4.0, "most": 4.0}
    assert "memory" not in found
    peaks = turns.compared([one | {"peak_mb": 400} for one in theirs], [one | {"peak_mb": 100} for one in ours])
    assert peaks["memory"] == 0.25


def test_exponent_of_a_power():
    assert turns.exponent((1, 2, 4, 8), (3, 6, 12, 24)) == 1.0
    assert turns.exponent((1, 2, 4), (5, 20, 80)) == 2.0
    assert turns.exponent((64, 4096), (7, 7)) == 0.0


def test_useful_arithmetic_by_hand():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from benchmarks.speed.roof import pair_flops, share, weights
    from stagealign.policy.logps import PairTokens

    config = GPTNeoXConfig(
        vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # attention 4x12 + 12 and 4x4 + 4, two products of 4x8 with 8 and 4, three norms of 4 + 4
    body = (48 + 12) + (16 + 4) + (32 + 8) + (32 + 4) + 3 * 8
    assert weights(model) == (body, 40)
    pairs = [PairTokens((1, 2, 3), (4, 5), (6,))]
    assert pair_flops(model, pairs, passes=3) == 2 * 3 * (6 * body + 3 * 40)
    roof = {"float32_gflops": 10.0}
    assert share({"flops": 5e9, "seconds": 2.0}, roof, "float32") == 25.0
    assert share({"seconds": 2.0}, roof, "float32") is None


def test_pairs_of_an_exact_length():
    pytest.importorskip("torch")
    from benchmarks.speed.models import policy
    from benchmarks.speed.pairs import exactly

    lm = policy("14m", SMALL)
    tokens = [lm.pair_tokens(pair, 1024) for pair in exactly(lm, 3, 32, seed=0)]
    assert {(len(one.prompt), len(one.chosen), len(one.rejected)) for one in tokens} == {(16, 16, 16)}


def test_every_row_has_a_way_and_a_cost():
    assert list(rows.WAYS) == [row.key for row in ROWS]
    for way in rows.WAYS.values():
        module, _, name = way.function.partition(":")
        assert re.search(rf"^def {name}\(given: Given", (ROOT / f"benchmarks/speed/{module}.py").read_text(), re.M)
    given = Given(repeats=3)
    assert rows.expected(["sweep"], given) == rows.WAYS["sweep"].once + 2 * rows.WAYS["sweep"].turn
    assert rows.expected(["sweep", "round"], given) > rows.expected(["round"], given) > 0


@pytest.mark.slow
def test_the_command_writes_a_row_once_and_goes_on(tmp_path):
    """With sides in processes of their own, so that their memory is told."""
    words = ("--small", "--threads", "1", "--rows", "growth-parameters", "--out", str(tmp_path))
    done = bench(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("1 rows, about 5 s; 0 are there already")
    found = json.loads((tmp_path / "growth-parameters.json").read_text())
    assert [point["peak_mb"] > 100 for point in found["points"]] == [True, True]
    assert found["made"]["settings"]["small"]
    assert not list(tmp_path.glob("*.part"))
    again = bench(*words)
    assert again.stdout.startswith("0 rows, about 0 s; 1 are there already")
    assert bench(*words, "--again", "--dry-run").stdout.startswith("1 rows")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "flying"), "--rows knows train-14m, "),
        (("--rows", "train-8b"), "--rows train-8b: not measured with --device cpu"),
        (("--repeats", "0"), "numbers are at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said):
    done = bench(*words)
    assert done.returncode == 2
    assert said in done.stderr


def collected(*arguments):
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", *arguments, "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::test_speed[" in line]


def test_rows_are_items_only_where_their_folder_is_named():
    assert collected("benchmarks") == []
    names = [line.partition("[")[2].rstrip("]") for line in collected("benchmarks/speed")]
    assert names == rows.of_device("cpu")
    chosen = collected("benchmarks/speed/test_speed.py", "--device", "cuda", "-k", "train-8b")
    assert len(chosen) == 1
