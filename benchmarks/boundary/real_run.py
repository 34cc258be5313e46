"""The command as a user calls it, from start to answer: SmolLM2-135M-Instruct, film reviews, `--decide 0.95`.

Policy, pairs and reward model come from the lab's store (`make demo` builds them). The store of the measured command
is empty, so everything is sampled. No text is written to the result.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.boundary.machine import boundary, hardware
from stagealign.store.home import default_home

PAIRS, POLICY, REWARD = Path("pan/seed0/static1/pairs/pairs.jsonl"), Path("smollm2"), Path("gold")
SHOWN = (
    "boundary_score", "interval", "interval_kind", "stage", "prompts_used", "votes", "top_candidate", "decision",
    "failures", "reliable", "caveats", "cost", "sentence",
)  # fmt: skip


def missing() -> str | None:
    """Reason why the run is impossible; None if the store has all of it."""
    lab = default_home() / "lab"
    absent = [str(path) for path in (POLICY, PAIRS, REWARD) if not (lab / path).exists()]
    return f"the store has no lab/{', lab/'.join(absent)}; `make demo` builds it" if absent else None


def measure(threads: int) -> list[dict[str, Any]]:
    """One row: the answer, and the time and memory that it took."""
    lab = default_home() / "lab"
    arguments = [
        *("--policy", str(lab / POLICY)),
        *("--data", str(lab / PAIRS)),
        *("--oracle", f"completion-reward:{lab / REWARD}"),
        *("--decide", "0.95", "--max-new-tokens", "64"),
    ]
    with tempfile.TemporaryDirectory() as home:
        measured, used = boundary(arguments, Path(home), threads)
    kept = {name: measured[name] for name in SHOWN}
    rows = {name: measured["data"][name] for name in ("rows given", "prompts")}
    return [{"policy": "SmolLM2-135M-Instruct", **kept, "data": rows, "used": used, "hardware": hardware(threads)}]
