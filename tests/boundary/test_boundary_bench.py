"""The boundary benchmark's instruments: they measure the command and not themselves, and count what they say."""

import pytest

from benchmarks.boundary import memory
from benchmarks.boundary.machine import boundary
from stagealign.scoring.contest import Contest


def test_peak_memory_is_that_of_the_command(tmp_path):
    """Recorded scores need no torch: what this process holds must not be counted, nor what a file of rows does."""
    torch = pytest.importorskip("torch")
    ballast = torch.ones(80_000_000)  # 320 MB in this process
    peaks = []
    for rows in (400, 8_000):
        file = memory.scored(tmp_path / "rows.jsonl", rows)
        home = tmp_path / str(rows)
        home.mkdir()
        found, used = boundary(["--oracle", f"recorded:{file}"], home, threads=1)
        assert found["prompts_used"] == rows // 4
        assert used["cpu_seconds"] > 0 < used["seconds"]
        peaks.append(used["peak_mb"])
    assert ballast.numel() * 4 > 2e8
    assert 20 < peaks[0] < 200
    assert peaks[1] < peaks[0] + 10


def test_both_sides_of_the_oracle_pass_do_the_same_work():
    pytest.importorskip("torch")
    from benchmarks.boundary import oracle_pass

    rows = oracle_pass.rows(Contest("p", ("a", "b"), ("c", "d")))
    assert len(rows) == len(set(rows)) == oracle_pass.ROWS_A_PROMPT
    assert all((p, b, a) in rows for p, a, b in rows)
    theirs = [{"seconds": 10.0, "cpu_seconds": 8.0}, {"seconds": 30.0, "cpu_seconds": 8.0}]
    ours = [{"seconds": 2.0, "cpu_seconds": 2.0}, {"seconds": 3.0, "cpu_seconds": 2.0}]
    assert oracle_pass.ratio(theirs, ours) == {"median": 7.5, "least": 5.0, "most": 10.0, "processor": 4.0}
