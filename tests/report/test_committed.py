"""What is committed belongs together: reports match results, and the README's table is the one they give."""

import subprocess
from pathlib import Path

import pytest

from stagealign.cli.options import DEMO
from stagealign.grid import select
from stagealign.report import build as report
from stagealign.report.pages.front import with_demo, with_faults, with_meter, with_speed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def committed():
    """Skips where results are not those of the checkout: a user's own run changes them, and may."""
    changed = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain", "results/lab"], capture_output=True, text=True
    )
    if changed.returncode or changed.stdout:
        pytest.skip("results/lab is not as committed: a run of one's own has changed it")


def test_reports_match_results():
    assert report.check(ROOT / "results", ROOT / "reports", "lab") == []


def test_the_readme_shows_the_demo_as_the_results_give_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_demo(readme, ROOT / "results", select.select("lab", DEMO), "reports") == readme


def test_the_readme_shows_the_cost_of_the_meter_as_it_was_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- meter:" in readme
    assert with_meter(readme, ROOT / "results") == readme


def test_the_readme_shows_speeds_as_they_were_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- speed:" in readme
    assert with_speed(readme, ROOT / "results") == readme


def test_the_readme_shows_attacks_as_they_were_survived():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- faults:" in readme
    assert with_faults(readme, ROOT / "results") == readme
