"""A soak: the 36 cells of three models over several seeds in one go, and commands over as many results as nobody has.

Memory and file handles are looked at while it runs, of all its processes together and of the one that holds most.
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
"""Of memory, last fifth to second fifth, that still counts as flat."""
HANDLES = 5
"""More file handles that still count as flat."""
ENOUGH = 10
"""Looks, a second apart, without which nothing is said of memory."""


class Watch:
    """Samples, once a second, of (bytes of memory, file handles of the process that has most) of an attempt."""

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
                memory = sum(_own_bytes(one) for one in family)
                self.samples.append((memory, max(one.num_fds() for one in family)))
            except psutil.Error:  # one of them ended between two looks
                continue

    def growth(self) -> tuple[str, bool]:
        """Memory and handles in the second fifth of the time and in the last, in words, and whether they grew."""
        if len(self.samples) < ENOUGH:
            return "too short to tell how memory grows", False
        memory = [self._fifth(number, 0) / 2**20 for number in (1, 4)]
        handles = [self._fifth(number, 1) for number in (1, 4)]
        told = (
            f"memory {memory[0]:.0f} MiB in the second fifth of the time and {memory[1]:.0f} in the last, file handles "
            f"{handles[0]:.0f} and {handles[1]:.0f}"
        )
        return told, memory[1] > GROWTH * memory[0] or handles[1] > handles[0] + HANDLES

    def _fifth(self, number: int, what: int) -> float:
        """Median of a fifth of the samples; 0 is the first."""
        size = len(self.samples) // 5
        return statistics.median(sample[what] for sample in self.samples[number * size : (number + 1) * size])


def _own_bytes(process: psutil.Process) -> int:
    """Memory that no other process shares; what forks share is there once, whatever they do."""
    found: int = process.memory_full_info().uss
    return found


def soak(folder: Path, seeds: int, models: Sequence[str]) -> Row:
    """All twelve cells of each model with `seeds` seeds in one call; then again, when nothing may be built."""
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
    done = [found for _, found in read_results(folder / "results", lab.SCALE) if isinstance(found, dict)]
    wanted, made = cells * seeds, sum(one["state"] == "done" for one in done)
    wrong = [] if ended.code == 0 and ended.clean and made == wanted else [
        f"exit {ended.code}, {made} of {wanted} results: {ended.output[-400:]}"
    ]  # fmt: skip
    known = built(folder / "home")
    again = Attempt(folder, words, plant).end()
    if again.code or built(folder / "home") != known:
        wrong.append(f"again: exit {again.code}, {builds(again.output)} built: {again.output[-400:]}")
    told, grown = watch.growth()
    found = f"{builds(ended.output)} artifacts in {seconds / 60:.1f} min; {told}"
    return _row(f"{cells} cells x {seeds} seeds in one call", wanted, wrong + [told] * grown, found)


def many(folder: Path, count: int) -> Iterator[Row]:
    """Report of the lab over `count` made-up results, and the plan of as many seeds of its cells beside them."""
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
    wrong = wrong or [said for said in [faults(folder, count)] if said]
    peak = max((sample[0] for sample in watch.samples), default=0) / 2**20
    held = f", {peak:,.0f} MiB at most" if watch.samples else ""
    return _row(f"{name} over {count:,} results", 1, wrong, f"{time.monotonic() - started:.1f} s{held}")


def _report_faults(folder: Path, count: int) -> str:
    """What is wrong with the report; empty where it counts every result as done."""
    page = (folder / "reports" / "lab" / "README.md").read_text(encoding="utf-8")
    told = re.search(r"([\d,]+) runs done[^;]*;", page)
    counted = told is not None and int(told[1].replace(",", "")) == count and "damaged" not in told[0]
    return "" if counted else f"the report does not count {count} runs: {told and told[0]}"


def _plan_faults(folder: Path, count: int) -> str:
    """What is wrong with the plan; empty where it holds more artifacts than there are results, each of them once."""
    artifacts = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["artifacts"]
    names = {one["id"] for one in artifacts}
    return "" if len(names) == len(artifacts) > count else f"{len(artifacts)} artifacts, {len(names)} names"


def _row(tried: str, times: int, wrong: list[str], found: str) -> Row:
    return {"tried": tried, "times": times, "survived": 0 if wrong else times, "wrong": wrong[:3], "found": found}


def measure(folder: Path, seeds: int, count: int, short: bool) -> Iterator[Row]:
    """The soak, then the commands over many results; `short`: of one model."""
    yield soak(folder / "soak", seeds, MODELS[: 1 if short else None])
    yield from many(folder / "many", count)
