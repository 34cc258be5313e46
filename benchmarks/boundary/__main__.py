"""`python -m benchmarks.boundary`: measures with fixed seeds, prints tables, writes `results/boundary/`.

Parts: `truth`, worlds with a known score; `sequential`, what an early stop does in them; `models`, recorded
preferences of AlpacaEval; `oracle`, the speed of PairRM's pass; `memory`, peak memory for files of two sizes; `real`,
the command on a real model.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.boundary import known_truth, recorded, sequential

SEED = 20250814
RESULTS = Path(__file__).resolve().parents[2] / "results" / "boundary"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boundary", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure, comma-separated")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the oracle pass")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch; at most the idle cores")
    given = parser.parse_args()
    parts = given.parts.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown or given.repeats < 1:
        parser.error(
            f"--parts knows {', '.join(PARTS)}, not {', '.join(unknown) or 'nothing'}; --repeats is at least 1"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for part in parts:
        PARTS[part](given, started)


def truth(given: argparse.Namespace, started: float) -> None:
    rows = known_truth.coverage(SEED, repetitions=1000)
    keep("coverage", rows, "Coverage of the 95% interval (aim: 0.93-0.97 at 0.3 to 0.7 from 30 prompts on)", started)
    rows = known_truth.wrong_decisions(SEED, streams=2000)
    keep("wrong_decisions", rows, "Sequential decision near the boundary (aim: wrong at most 0.05)", started)
    rows = known_truth.prompts_needed(SEED, streams=2000)
    aim = "Prompts until the stage is named (aim: median at most 80 at a gap of 0.1, 20 at 0.25); the paper pays 2,000"
    keep("prompts_needed", rows, aim, started)
    rows = known_truth.forecasts(SEED, streams=60)
    keep("forecasts", rows, "Prompts said to be needed when the budget ended undecided", started)


def stops(given: argparse.Namespace, started: float) -> None:
    rows = sequential.estimates(SEED, streams=300)
    keep("estimates", rows, "Score at an early stop: share of votes won, and the estimate shown", started)
    rows = sequential.sequences(SEED, streams=1000)
    keep("sequences", rows, "Interval at every look up to 400 prompts (aim: held in at least 0.95)", started)
    rows = sequential.zones(SEED, streams=80)
    keep("zones", rows, "Mean prompts with and without an indifference zone of 0.05", started)
    rows = sequential.against_bound(SEED, streams=1000)
    keep("against_bound", rows, "Mean prompts over log(20) / KL (aim: cross at most 1.3)", started)
    rows = sequential.rare_losses(SEED, repetitions=1000)
    keep("rare_losses", rows, "Coverage of the 95% interval with rare losses, and of those without a warning", started)


def models(given: argparse.Namespace, started: float) -> None:
    folder = recorded.data_folder()
    if isinstance(folder, str):
        print(f"\nRecorded preferences: skipped, {folder}")
        return
    for name, static in (("recorded_all", None), ("recorded_two", 2)):
        row = recorded.measure(folder, SEED, orders=5, static=static)
        summary = ", ".join(f"{key} {show(value)}" for key, value in row.items() if key != "models")
        keep(name, row, f"AlpacaEval 2, each model as the policy ({summary}; aim: spearman 0.95)", started)


def oracle(given: argparse.Namespace, started: float) -> None:
    from benchmarks.boundary import oracle_pass

    rows = oracle_pass.measure(given.repeats, given.threads)
    aim = "PairRM's pass over 2,000 prompts x 4 candidates, seconds; aim: 5 times the README's loop, one pair at a time"
    keep("oracle_pass", rows, aim, started)


def memory(given: argparse.Namespace, started: float) -> None:
    from benchmarks.boundary import memory

    rows = memory.measure()
    keep("memory", rows, "Peak memory of the whole command, MB (aim: the same for 100,000 rows as for 2,000)", started)


def real(given: argparse.Namespace, started: float) -> None:
    from benchmarks.boundary import real_run

    reason = real_run.missing()
    if reason:
        print(f"\nA real run: skipped, {reason}")
        return
    keep("real_run", real_run.measure(given.threads), "A real run, from start to answer (aim: under 300 s)", started)


PARTS: dict[str, Callable[[argparse.Namespace, float], None]] = {
    "truth": truth,
    "sequential": stops,
    "models": models,
    "oracle": oracle,
    "memory": memory,
    "real": real,
}


def keep(name: str, measured: Any, title: str, started: float) -> None:
    """Writes a measurement to `<name>.json` and prints its rows as a table."""
    rows = measured["models"] if isinstance(measured, dict) else measured
    text = json.dumps({"seed": SEED, "found": measured}, indent=1, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n{title} [{time.perf_counter() - started:.0f} s]")
    if any(isinstance(value, dict) for value in rows[0].values()):  # too wide for a table
        for row in rows:
            print(*(f"  {name}: {show(value)}" for name, value in row.items()), sep="\n")
        return
    cells = [list(rows[0]), *([show(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(show, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(inner)}" for key, inner in value.items())
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
