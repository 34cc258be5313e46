"""Sides run in turns, each in a separate process, and the ratios of their times.

A side is a function `module:name` that takes the arguments of `child` and returns its `seconds`, `cpu_seconds` and
`work` (units done, so that a slow peer may do fewer); its process adds its peak memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.boundary.machine import peak_mb

ROOT = Path(__file__).resolve().parents[2]
Run = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """Settings of a measurement."""

    threads: int = 2
    repeats: int = 3
    small: bool = False
    """Thin models, for seconds; plumbing only."""
    device: str = "cpu"


def child(function: str, given: Given, **more: Any) -> Run:
    """Return value of `module:name` in a separate process, with its peak memory in MB. Raises RuntimeError."""
    hidden = {} if given.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "TQDM_DISABLE": "1"} | hidden
    command = [sys.executable, "-m", "benchmarks.speed.turns", function, json.dumps({"given": asdict(given)} | more)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function} {json.dumps(more)}: ended with {done.returncode}\n{done.stderr[-3000:]}")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def turns(sides: Mapping[str, tuple[str, Mapping[str, Any]]], given: Given) -> dict[str, list[Run]]:
    """Runs of each side, in turns: the first of each, then the second of each, and so on."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(given.repeats):
        for side, (function, more) in sides.items():
            runs[side].append(child(function, given, **more))
    return runs


@contextmanager
def clock(device: str = "cpu") -> Iterator[dict[str, float]]:
    """Measures the block; the yielded dictionary gets `seconds` and `cpu_seconds` (of all threads) at its end."""
    took: dict[str, float] = {}
    _wait(device)
    started, worked = time.perf_counter(), time.process_time()
    yield took
    _wait(device)
    took |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def compared(theirs: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    """Ratios of speed, ours over theirs, over turns, in time and in processor time; and the ratio of peak memory."""
    ratios: dict[str, Any] = {}
    for name, key in (("time", "seconds"), ("processor", "cpu_seconds")):
        pairs = zip(theirs, ours, strict=True)
        ratios[name] = spread([their[key] / their["work"] * our["work"] / our[key] for their, our in pairs])
    if "peak_mb" in ours[0] and "peak_mb" in theirs[0]:
        worst = max(run["peak_mb"] for run in ours) / min(run["peak_mb"] for run in theirs)
        ratios["memory"] = round(worst, 3)
    return ratios


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(size): 1 if the value is proportional to the size."""
    from math import log

    x, y = [log(size) for size in sizes], [log(value) for value in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return round(above / sum((a - middle_x) ** 2 for a in x), 3)


def main() -> None:
    """Runs one side and prints its result as the last line."""
    name, _, function = sys.argv[1].partition(":")
    words = json.loads(sys.argv[2])
    given = Given(**words.pop("given"))
    import torch

    torch.set_num_threads(given.threads)
    run = getattr(import_module(name), function)(given, **words)
    peak = torch.cuda.max_memory_allocated() / 2**20 if given.device == "cuda" else peak_mb()
    took = {key: round(run[key], 4) for key in ("seconds", "cpu_seconds") if key in run}
    print(json.dumps({**run, **took, "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
