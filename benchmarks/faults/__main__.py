"""`python -m benchmarks.faults`: injects faults, prints what survived, writes `results/faults/`.

`--part killing,together,same,rot,data,neighbours,load` chooses parts. The report shows the default sizes; each row
records how often it was tried.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "results" / "faults"
PARTS = {
    "killing": "Killed anywhere",
    "together": "Two at once",
    "same": "Same again",
    "rot": "Rot",
    "data": "Bad data",
    "neighbours": "Bad neighbours",
    "load": "Load",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--part", default=",".join(PARTS), help="parts to run, comma-separated")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs of part killing")
    parser.add_argument("--signals", type=int, default=10, help="SIGINTs, and as many SIGTERMs, of part killing")
    parser.add_argument("--inputs", type=int, default=50_000, help="made-up files of part data")
    parser.add_argument("--processes", type=int, default=8, help="processes of part together")
    parser.add_argument("--harms", type=int, default=20, help="damaged files of each kind, of part rot")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each cell in part load")
    parser.add_argument("--results", type=int, default=10_000, help="made-up results of part load")
    parser.add_argument("--short", action="store_true", help="only one of each kind, as in CI")
    parser.add_argument("--seed", type=int, default=20250814)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    parts = given.part.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--part knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    for part in parts:
        started, rows = time.monotonic(), []
        print(f"\n{PARTS[part]}", flush=True)
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            for row in measure(part, Path(folder), given):
                rows.append(row)
                print(line(row), flush=True)
        head = {"part": part, "title": PARTS[part], "seed": given.seed, "seconds": round(time.monotonic() - started)}
        given.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(head | {"rows": rows}, indent=1, allow_nan=False)
        (given.out / f"{part}.json").write_text(text + "\n", encoding="utf-8")


def measure(part: str, folder: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of one part: what was `tried`, how many `times`, how many `survived`, what was `found`, what was `wrong`."""
    if part == "data":
        from benchmarks.faults import data

        yield from data.measure(folder, given.inputs, given.seed)
        return
    if part == "neighbours":
        from benchmarks.faults import neighbours

        yield from neighbours.measure(folder)
        return
    from benchmarks.faults import attempts, killing, load, rot, same, together

    attempts.preload()
    if part == "killing":
        yield from killing.measure(folder, given.kills, given.signals, given.seed)
    elif part == "together":
        yield from together.measure(folder, given.processes, given.seed, given.short)
    elif part == "same":
        yield from same.measure(folder)
    elif part == "rot":
        yield from rot.measure(folder, given.harms, given.seed)
    else:
        yield from load.measure(folder, given.seeds, given.results, given.short)


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    text = f"{row['tried']:<58} {row['survived']:>6} of {row['times']:<6} {row['found']}"
    return "\n    ".join([text, *row["wrong"]])


if __name__ == "__main__":
    main()
