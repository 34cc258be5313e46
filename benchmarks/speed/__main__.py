"""`python -m benchmarks.speed`: runs both sides in turns, prints seconds, speed, memory and ratio, writes the results.

`--small` runs thin random models for seconds, to see that everything works; its numbers mean nothing, and it writes
only where `--out` says so.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASKED = {"training": 3.0, "sampling": 1.5}
UNIT = {"training": "pairs/s", "sampling": "tokens/s"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rows", default="training,sampling", help="which of them, comma-separated")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, taken in turns")
    parser.add_argument("--threads", type=int, default=2, help="of torch; no more than there are idle cores")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of one training run; 4 where --small")
    parser.add_argument("--small", action="store_true", help="thin models, for seconds; plumbing only")
    parser.add_argument("--out", type=Path, help="folder of the results; results/speed unless --small")
    given = parser.parse_args()
    rows = given.rows.split(",")
    unknown = set(rows) - set(ASKED)
    if unknown or given.repeats < 1:
        parser.error(f"--rows knows {', '.join(ASKED)}, not {', '.join(unknown) or 'nothing'}; --repeats is at least 1")
    out = given.out or (None if given.small else ROOT / "results" / "speed")
    for row in rows:
        result = summary(row, measure(row, given))
        show(row, result)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{row}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def measure(row: str, given: argparse.Namespace) -> dict[str, Any]:
    """What the row's module found."""
    from benchmarks.speed import sampling, training

    if row == "training":
        return training.measure(given.repeats, given.threads, given.small, given.pairs)
    return sampling.measure(given.repeats, given.threads, given.small)


def summary(row: str, found: dict[str, Any]) -> dict[str, Any]:
    """What was found with the ratio of speeds: median, least and most over the turns.

    The ratio of processor time is beside it: it is what another program on the machine disturbs least.
    """
    (_, ours), (_, theirs) = found["runs"].items()
    ratios = [one["per_second"] / other["per_second"] for one, other in zip(ours, theirs, strict=True)]
    ratio = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    found["ratio"] = {name: round(value, 3) for name, value in ratio.items()} | {"asked": ASKED[row]}
    work = [[run["cpu_seconds"] / run.get("tokens", 1) for run in runs] for runs in found["runs"].values()]
    our_work, their_work = work
    found["cpu_ratio"] = round(median(b / a for a, b in zip(our_work, their_work, strict=True)), 3)
    if "peak_mb" in ours[0]:
        memory = max(one["peak_mb"] for one in ours) / min(one["peak_mb"] for one in theirs)
        found["memory_ratio"] = {"worst": round(memory, 3), "asked": 1.0}
    found["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    return {"row": row, "unit": UNIT[row], **found}


def show(row: str, result: dict[str, Any]) -> None:
    """Prints one row's runs and ratio."""
    print(f"\n{row}: {result['sizes']}\ncheck: {result['check']}")
    for side, runs in result["runs"].items():
        for one in runs:
            peak = f"  peak {one['peak_mb']:,} MB" if "peak_mb" in one else ""
            print(f"  {side:<9}{one['seconds']:>9.2f} s  {one['per_second']:>10.2f} {result['unit']}{peak}")
    ratio = result["ratio"]
    print(f"  ratio {ratio['median']} ({ratio['least']} to {ratio['most']}), asked: at least {ratio['asked']}")
    print(f"  ratio of processor time {result['cpu_ratio']}, the steadier one where the machine is shared")
    if "memory_ratio" in result:
        worst = result["memory_ratio"]["worst"]
        print(f"  memory {worst} (largest of ours to least of the other's), asked: at most 1")


if __name__ == "__main__":
    main()
