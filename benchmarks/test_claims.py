"""It reproduced: what the paper says of its own models, against results at paper scale and nothing else.

The tolerance of each claim stands here, written down before the run. Nothing is run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import pytest

from stagealign import paper
from stagealign.results import read_result

ABSENT = "not run: no paper-scale results"


@dataclass(frozen=True)
class Claim:
    """A published finding and when our number counts as the same one."""

    id: str
    words: str
    cells: tuple[str, ...]
    number: Callable[..., float]
    """Our number from the cells' gains or scores, in the order of `cells`."""
    low: float
    high: float
    """Our number must lie strictly between the two."""


ZEPHYR = paper.known("zephyr", "start", "effectiveness_ratio")
INFINITE = float("inf")

CLAIMS = (
    Claim(
        "injection_ratio",
        f"Zephyr's start gains less from on-policy data: {ZEPHYR.text}, tolerance the interval of 805 prompts",
        ("zephyr-dpo-1on", "zephyr-dpo-1off"),
        lambda on, off: gain(on) / gain(off),
        *ZEPHYR.interval,
    ),
    Claim(
        "tuning_direction",
        "Llama-3's start gains more from on-policy data; the direction only, as the size is not solid",
        ("llama3-dpo-1on", "llama3-dpo-1off"),
        lambda on, off: gain(on) - gain(off),
        0.0,
        INFINITE,
    ),
    Claim(
        "injection_score",
        "Phi-2's start is before the boundary: its score is below 0.5",
        ("phi2-dpo-1on",),
        lambda runs: fmean(run["start"]["test"]["boundary"]["score"] for run in runs),
        -INFINITE,
        0.5,
    ),
)


def gain(runs):
    """Mean over seeds of the gain at the recorded learning rate."""
    last = [run["rounds"][-1] for run in runs]
    rungs = [next(r for r in one["rungs"] if r["learning_rate"] == one["learning_rate"]) for one in last]
    return fmean(rung["gain"]["test"]["value"] for rung in rungs)


def done(folder, cell):
    """Every finished run of a cell at paper scale with published weights; skips where there is none."""
    runs = [read_result(path) for path in sorted((folder / "paper").glob(f"{cell}-seed*.json"))]
    kept = [
        run
        for run in runs
        if (run["scale"], run["state"]) == ("paper", "done") and run["model"]["weights"] == "published"
    ]
    if not kept:
        pytest.skip(ABSENT)
    return kept


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claim(claim, pytestconfig):
    folder = pytestconfig.getoption("results") or pytestconfig.rootpath / "results"
    number = claim.number(*(done(folder, cell) for cell in claim.cells))
    if not claim.low < number < claim.high:
        pytest.fail(
            f"{claim.words}: {number:.3g} found, {claim.low:g} to {claim.high:g} is the tolerance", pytrace=False
        )
