"""Many processes that ask for the same cells of one store, on folders whose locks work, are refused, or lie."""

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
    """A local disk."""


def locks_refused(number: int) -> None:
    """A share without locks: every request for one is an error."""

    def refuse(*_: Any) -> None:
        raise OSError(37, os.strerror(37))

    fcntl.flock = refuse


def locks_lie(number: int) -> None:
    """A share whose locks hold on one machine only, asked by processes of one machine: all get them."""
    fcntl.flock = lambda *_: None


def other_machines(number: int) -> None:
    """The same share, and each process on a machine of its own: whether another lives can only be seen by its touch."""
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
    """Whether one that builds is killed for good."""
    seed: int

    def __str__(self) -> str:
        return f"{self.processes} processes, {self.way}" + ", a builder killed" * self.kill


def shared(folder: Path, reference: Path, crowd: Crowd, length: float) -> Row:
    """What came of a crowd; `length`: seconds of an undisturbed run, within which one is killed."""
    home, chance, kill = folder / "home", random.Random(crowd.seed), crowd.kill
    plant = WAYS[crowd.way]
    places = [folder / f"process{number}" for number in range(crowd.processes)]
    under_way = [
        Attempt(place, plant=lambda number=number: plant(number), home=home) for number, place in enumerate(places)
    ]
    victim = None
    if kill:
        time.sleep(chance.uniform(0, length))
        victim = next((one for one in under_way if _holds(home, one)), under_way[0])
        victim.kill(signal.SIGKILL, group=True)
    ended = [one.end() for one in under_way]
    finished = [(place, one) for place, one, who in zip(places, ended, under_way, strict=True) if who is not victim]
    wrong = [f"exit {one.code}: {one.output[-500:]}" for _, one in finished if one.code]
    for place, _ in finished[:1]:
        wrong += faults_of(place, reference, home)
    made, wanted = sum(builds(one.output) for one in ended), len(list(home.rglob("record.json")))
    if not kill and made != wanted:
        wrong.append(f"{made} built, {wanted} artifacts")
    waited = sum("waiting for " in one.output and "pid " in one.output for one in ended)
    wrong += [] if waited else ["nobody said for whom it waits"]
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


def _holds(home: Path, one: Attempt) -> bool:
    """Whether a process of this attempt builds something now."""
    for path in home.rglob("*.holder"):
        try:
            if os.getpgid(int(path.read_text().split()[0])) == one.pid:
                return True
        except (OSError, ValueError, IndexError):
            continue
    return False


def measure(folder: Path, processes: int, seed: int, short: bool) -> Iterator[Row]:
    """Each way of locking, undisturbed and with a builder killed; `short`: one of the two."""
    from benchmarks.faults.killing import undisturbed

    reference = folder / "reference"
    length = undisturbed(reference).seconds
    for number, way in enumerate(WAYS):
        for kill in (False, True) if not short else (bool(number % 2),):
            place = folder / f"{number}{kill}"
            yield shared(place, reference, Crowd(processes, way, kill, seed + number), length)
