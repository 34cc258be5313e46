"""Many processes that run the same cells on one store, whose locks work, fail, or are granted to all."""

import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.attempts import Attempt, builds, faults_of

Row = dict[str, Any]


def locks_work(number: int) -> None:
    """Leaves locks as on a local disk."""


def locks_refused(number: int) -> None:
    """Makes every lock fail, as on a network share without locks."""

    def refuse(*_: Any) -> None:
        raise OSError(37, os.strerror(37))

    fcntl.flock = refuse


def locks_lie(number: int) -> None:
    """Grants every lock to everybody, as on a share whose locks do not hold between machines."""
    fcntl.flock = lambda *_: None


def other_machines(number: int) -> None:
    """Grants every lock and gives each process its own host name, so that only heartbeats show which processes live."""
    from stagealign.store import locks

    locks_lie(number)
    locks.HEARTBEAT, locks.STALE = 1.0, 30.0
    socket.gethostname = lambda: f"machine{number}"


WAYS = {
    "locks that work": locks_work,
    "locks that are refused": locks_refused,
    "locks that lie": locks_lie,
    "locks that lie, and each process on another machine": other_machines,
}


@dataclass(frozen=True)
class Crowd:
    """Runs of the same cells on one store at once."""

    processes: int
    way: str
    """A key of `WAYS`."""
    kill: bool
    """Whether one process that builds is killed and not restarted."""
    seed: int

    def __str__(self) -> str:
        return f"{self.processes} processes, {self.way}" + ", a builder killed" * self.kill


def shared(folder: Path, reference: Path, crowd: Crowd, length: float) -> Row:
    """Row of a crowd; the kill comes within `length`, the seconds of an undisturbed run."""
    home, chance, kill = folder / "home", random.Random(crowd.seed), crowd.kill
    plant = WAYS[crowd.way]
    places = [folder / f"process{number}" for number in range(crowd.processes)]
    under_way = [
        Attempt(place, plant=lambda number=number: plant(number), home=home) for number, place in enumerate(places)
    ]
    victim = None
    if kill:
        time.sleep(chance.uniform(0, length))
        victim = next((attempt for attempt in under_way if _holds(home, attempt)), under_way[0])
        victim.kill(signal.SIGKILL, group=True)
    ended = [attempt.end() for attempt in under_way]
    runs = zip(places, ended, under_way, strict=True)
    finished = [(place, end) for place, end, attempt in runs if attempt is not victim]
    wrong = [f"exit {end.code}: {end.output[-500:]}" for _, end in finished if end.code]
    for place, _ in finished[:1]:
        wrong += faults_of(place, reference, home)
    built, wanted = sum(builds(end.output) for end in ended), len(list(home.rglob("record.json")))
    if not kill and built != wanted:
        wrong.append(f"{built} built, {wanted} artifacts")
    waited = sum("waiting for " in end.output and "pid " in end.output for end in ended)
    wrong += [] if waited else ["no process named the one that it waits for"]
    wrong += [f"{path}: left over" for path in home.rglob("*.holder")]
    found = f"{wanted} artifacts, each built once" if not kill else f"{wanted} artifacts, the killed one replaced"
    found = f"{found}; {waited} processes named whom they waited for"
    return {
        "tried": str(crowd),
        "times": len(finished),
        "survived": 0 if wrong else len(finished),
        "wrong": wrong[:3],
        "found": found if not wrong else "not as it must be",
    }


def _holds(home: Path, attempt: Attempt) -> bool:
    """Whether a process of this attempt builds something now."""
    for path in home.rglob("*.holder"):
        try:
            if os.getpgid(int(path.read_text().split()[0])) == attempt.pid:
                return True
        except (OSError, ValueError, IndexError):
            continue
    return False


def measure(folder: Path, processes: int, seed: int, short: bool) -> Iterator[Row]:
    """Yields rows for each way of locking, undisturbed and with a builder killed; `short`: one of the two."""
    from benchmarks.faults.killing import undisturbed

    reference = folder / "reference"
    length = undisturbed(reference).seconds
    for number, way in enumerate(WAYS):
        for kill in (False, True) if not short else (bool(number % 2),):
            place = folder / f"{number}{kill}"
            yield shared(place, reference, Crowd(processes, way, kill, seed + number), length)
