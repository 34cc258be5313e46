"""Load tests: the 36 cells of three models over several seeds in one call, and commands over very many results.

Memory of all processes, and file handles of the process with the most, are sampled during each run.
"""

import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults import lab
from benchmarks.faults.attempts import Attempt, Ended, builds, built

Row = dict[str, Any]
MODELS = ("llama3", "zephyr", "phi2")
GROWTH = 1.10
"""Largest ratio of memory, last fifth of the time over second fifth, that counts as flat."""
HANDLES = 5
"""Largest increase of file handles that counts as flat."""
ENOUGH = 10
"""Fewest samples, one each second, from which growth is judged."""


class Watch:
    """Sampler of an attempt, once a second: (bytes of memory, file handles of the process with the most)."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self.samples: list[tuple[int, int]] = []

    def end(self) -> Ended:
        """Waits for the attempt."""
        over = threading.Event()
        looking = threading.Thread(target=self._look, args=(over,))
        looking.start()
        try:
            return self.attempt.end()
        finally:
            over.set()
            looking.join()

    def _look(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            try:
                first = psutil.Process(self.attempt.pid)
                family = [first, *first.children(recursive=True)]
                memory = sum(map(_own_bytes, family))
                self.samples.append((memory, max(process.num_fds() for process in family)))
            except psutil.Error:  # a process ended between two calls
                continue

    def growth(self) -> tuple[str, bool]:
        """Memory and handles in the second and the last fifth of the time, as text; and whether either grew."""
        if len(self.samples) < ENOUGH:
            return "too short to tell how memory grows", False
        memory = [self._fifth(number, 0) / 2**20 for number in (1, 4)]
        handles = [self._fifth(number, 1) for number in (1, 4)]
        text = (
            f"memory {memory[0]:.0f} MiB in the second fifth of the time and {memory[1]:.0f} in the last, file handles "
            f"{handles[0]:.0f} and {handles[1]:.0f}"
        )
        return text, memory[1] > GROWTH * memory[0] or handles[1] > handles[0] + HANDLES

    def _fifth(self, number: int, what: int) -> float:
        """Median of one field over a fifth of the samples, numbered from 0."""
        size = len(self.samples) // 5
        return statistics.median(sample[what] for sample in self.samples[number * size : (number + 1) * size])


def _own_bytes(process: psutil.Process) -> int:
    """Memory that no other process shares; pages shared by forks are left out."""
    unshared: int = process.memory_full_info().uss
    return unshared


def soak(folder: Path, seeds: int, models: Sequence[str]) -> Row:
    """Row of all twelve cells of each model with `seeds` seeds in one call, then again, which must build nothing."""
    from stagealign.grid import models as models_room
    from stagealign.store.results import read_results

    def plant() -> None:
        known = models_room.CHECKPOINTS[lab.SCALE]["zephyr"]
        models_room.CHECKPOINTS[lab.SCALE] = dict.fromkeys(models, known)

    cells = 12 * len(models)
    words = ("run", "--scale", lab.SCALE, "--seeds", str(seeds), "--workers", "2")
    started = time.monotonic()
    watch = Watch(Attempt(folder, words, plant))
    ended = watch.end()
    seconds = time.monotonic() - started
    written = [result for _, result in read_results(folder / "results", lab.SCALE) if isinstance(result, dict)]
    wanted, done = cells * seeds, sum(result["state"] == "done" for result in written)
    wrong = [] if ended.code == 0 and ended.clean and done == wanted else [
        f"exit {ended.code}, {done} of {wanted} results: {ended.output[-400:]}"
    ]  # fmt: skip
    known = built(folder / "home")
    again = Attempt(folder, words, plant).end()
    if again.code or built(folder / "home") != known:
        wrong.append(f"again: exit {again.code}, {builds(again.output)} built: {again.output[-400:]}")
    growth, grown = watch.growth()
    found = f"{builds(ended.output)} artifacts in {seconds / 60:.1f} min; {growth}"
    return _row(f"{cells} cells x {seeds} seeds in one call", wanted, wrong + [growth] * grown, found)


def many(folder: Path, count: int) -> Iterator[Row]:
    """Rows of a lab report over `count` made-up results, and of a plan of as many runs beside them."""
    from benchmarks.speed.start import fill
    from stagealign.grid import registry

    fill(folder / "results", count)
    cells = len(registry.cells("lab"))
    seeds = -(-count // cells)
    yield _command("report", folder, ("report", "--scale", "lab"), count, _report_faults)
    words = ("plan", "--scale", "lab", "--seeds", str(seeds), "--json", "plan.json")
    yield _command(f"plan of {cells} cells x {seeds} seeds", folder, words, count, _plan_faults)


def _command(name: str, folder: Path, words: tuple[str, ...], count: int, faults: Callable[[Path, int], str]) -> Row:
    started = time.monotonic()
    watch = Watch(Attempt(folder, words))
    ended = watch.end()
    wrong = [] if ended.code == 0 and ended.clean else [f"exit {ended.code}: {ended.output[-400:]}"]
    wrong = wrong or [fault for fault in [faults(folder, count)] if fault]
    peak = max((sample[0] for sample in watch.samples), default=0) / 2**20
    held = f", {peak:,.0f} MiB at most" if watch.samples else ""
    return _row(f"{name} over {count:,} results", 1, wrong, f"{time.monotonic() - started:.1f} s{held}")


def _report_faults(folder: Path, count: int) -> str:
    """Fault of the report; empty if it counts every result as done."""
    page = (folder / "reports" / "lab" / "README.md").read_text(encoding="utf-8")
    line = re.search(r"([\d,]+) runs done[^;]*;", page)
    counted = line is not None and int(line[1].replace(",", "")) == count and "damaged" not in line[0]
    return "" if counted else f"the report does not count {count} runs: {line and line[0]}"


def _plan_faults(folder: Path, count: int) -> str:
    """Fault of the plan; empty if it holds more artifacts than `count`, each once."""
    artifacts = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["artifacts"]
    names = {artifact["id"] for artifact in artifacts}
    return "" if len(names) == len(artifacts) > count else f"{len(artifacts)} artifacts, {len(names)} names"


def _row(tried: str, times: int, wrong: list[str], found: str) -> Row:
    return {"tried": tried, "times": times, "survived": 0 if wrong else times, "wrong": wrong[:3], "found": found}


def measure(folder: Path, seeds: int, count: int, short: bool) -> Iterator[Row]:
    """Yields the rows of the runs, then of the commands over many results; `short` runs one model only."""
    yield soak(folder / "soak", seeds, MODELS[: 1 if short else None])
    yield from many(folder / "many", count)
