"""The speed benchmark runs on thin models and writes both rows; its numbers mean nothing at this size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_small_run_checks_times_and_writes_both_rows(tmp_path):
    done = bench("--small", "--repeats", "1", "--threads", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for row, other in (("training", "trl"), ("sampling", "generate")):
        found = json.loads((tmp_path / f"{row}.json").read_text())
        assert set(found["runs"]) == {"ours", other}
        assert all(run["seconds"] > 0 < run["per_second"] for runs in found["runs"].values() for run in runs)
        ratio = found["ratio"]
        assert 0 < ratio["least"] == ratio["median"] == ratio["most"]
        assert found["sizes"]["small"]
    assert found["check"]["equal"]
    trained = json.loads((tmp_path / "training.json").read_text())
    assert trained["check"]["difference"] < 1e-5
    assert all(run["peak_mb"] > 0 for runs in trained["runs"].values() for run in runs)
    assert "ratio" in done.stdout


def test_unknown_row_is_refused():
    done = bench("--rows", "flying")
    assert done.returncode == 2
    assert "--rows knows training, sampling, not flying" in done.stderr
