"""`python -m benchmarks.speed`: runs all sides in turns, prints times, memory and ratios, writes a file for each row.

A row is skipped if the results hold it from the same machine, versions, settings and code, so an interrupted call can
be repeated; `--again` measures it again. `--small` runs thin random models to check that everything works; its numbers
mean nothing, and it writes files only if `--out` is given.
"""

import argparse
import time
from pathlib import Path

from stagealign.report.pages.aims import BY_KEY

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rows", help="rows to measure, comma-separated; by default all")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each row; long rows have fewer")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch; at most the idle cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the models")
    parser.add_argument("--small", action="store_true", help="thin models, for seconds; plumbing only")
    parser.add_argument("--again", action="store_true", help="also measure rows that have a result")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be measured and how long it takes")
    parser.add_argument("--out", type=Path, help="folder of the results; results/speed/<device> unless --small")
    given = parser.parse_args()
    unknown = set(given.rows.split(",")) - set(BY_KEY) if given.rows else set()
    if unknown or min(given.repeats, given.threads) < 1:
        parser.error(f"--rows knows {', '.join(BY_KEY)}, not {', '.join(unknown) or 'nothing'}; numbers are at least 1")
    from benchmarks.speed import rows
    from benchmarks.speed.turns import Given
    from stagealign.report.sections.words import duration

    how = Given(given.threads, given.repeats, given.small, given.device)
    here = rows.of_device(given.device)
    chosen = given.rows.split(",") if given.rows else here
    elsewhere = [key for key in chosen if key not in here]
    if elsewhere:
        parser.error(f"--rows {', '.join(elsewhere)}: not measured with --device {given.device}")
    out = given.out or (None if given.small else ROOT / "results" / "speed" / given.device)
    done = [key for key in chosen if not given.again and out and rows.ready(out / f"{key}.json", key, how)]
    left = [key for key in chosen if key not in done]
    print(f"{len(left)} rows, about {duration(rows.expected(left, how))}; {len(done)} are there already", flush=True)
    for key in [] if given.dry_run else left:
        started = time.monotonic()
        print(f"\n{key}, about {duration(rows.expected([key], how))}", flush=True)
        result = rows.measure(key, how)
        print(*rows.lines(result, given.device), f"  took {duration(time.monotonic() - started)}", sep="\n", flush=True)
        if out:
            rows.write(out / f"{key}.json", result)


if __name__ == "__main__":
    main()
