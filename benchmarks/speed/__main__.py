"""`python -m benchmarks.speed`: runs all sides in turns, prints times, memory and ratios, writes a file a row.

A row that stands in the results as it would be measured now (same machine, versions, settings and code) is left as it
is, so an interrupted call goes on where it stopped; `--again` measures it anew. `--small` runs thin random models for
seconds, to see that everything works; its numbers mean nothing, and it writes only where `--out` says so.
"""

import argparse
import time
from pathlib import Path

from stagealign.report.pages.aims import BY_KEY

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rows", help="which of them, comma-separated; all by default")
    parser.add_argument("--repeats", type=int, default=3, help="turns; a row whose turn takes long has fewer")
    parser.add_argument("--threads", type=int, default=2, help="of torch; no more than there are idle cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the models run on")
    parser.add_argument("--small", action="store_true", help="thin models, for seconds; plumbing only")
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured and for how long")
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
