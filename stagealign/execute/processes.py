"""Runs a plan's missing artifacts, side by side where there is room: on processes of this machine, or a cluster's."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

from stagealign.base.errors import StagealignError
from stagealign.base.secrets import printing_to, without_secrets
from stagealign.execute.executors import Execution
from stagealign.plan.plan import Plan
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.room import room_error


@dataclass
class Outcome:
    """What a plan's execution did."""

    built: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    """Paths that another process had built by the time that they were needed."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Path that another process builds -> who, as `pid 12 on host`."""
    places: dict[str, str] = field(default_factory=dict)
    """Path of what is being built -> where, as `pid 12 on host`, where that is not simply here."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why; what depends on it is listed too."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Path of what was not tried -> the failed path that it depends on."""


Listener = Callable[[str, Artifact, Outcome], None]
"""Told `started`, `again`, `waiting`, `built`, `found` or `failed`, the artifact, and the outcome so far.

`again`: whoever built it was lost, and another has begun.
"""
LONGEST_END = 30.0
"""Seconds that a worker without its parent has to end what it started."""
LOOK = 0.5
"""Seconds between two looks at what workers say."""


def worker_count(plan: Plan, asked: int | None) -> int:
    """Workers that a plan gets: as many as cores, or as asked, never more than there is work."""
    cores = os.cpu_count() or 1
    return max(1, min(asked or cores, cores, len(plan.missing)))


class Crew(Protocol):
    """Who builds."""

    size: int
    """Artifacts that may be under way at a time."""
    slots: int
    """Artifacts that are likely built side by side, for the time left."""
    about: str
    """Who builds, in a line; empty where that is this machine."""

    def submit(self, artifact: Artifact) -> Future[bool | str]:
        """Has it built; the future tells whether that was needed, or in words, or as an exception, why it failed."""

    def news(self) -> Iterator[tuple[str, str, str]]:
        """What was not told yet, as (path, `started` or `waiting`, who builds it where)."""

    def end(self, at_once: bool) -> None:
        """Lets everybody go; `at_once` ends what is under way."""


def execute(plan: Plan, store: Store, crew: Crew, heard: Listener) -> Outcome:
    """Builds what is missing; a failure stops what depends on it and nothing else.

    KeyboardInterrupt ends those who build and leaves finished artifacts in place.
    """
    outcome = Outcome()
    todo = {artifact.path: artifact for artifact in plan.missing}
    if not todo:
        return outcome
    running: dict[Future[bool | str], Artifact] = {}
    begun: set[str] = set()
    try:
        while todo or running:
            for artifact in _startable(todo, running, crew.size):
                running[crew.submit(artifact)] = todo.pop(artifact.path)
            if not running:
                break
            _hear(crew, running, begun, outcome, heard)
            done, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
            _hear(crew, running, begun, outcome, heard)
            for future in done:
                artifact = running.pop(future)
                store.forget(artifact)
                _begin(artifact, begun, outcome, heard)
                outcome.waiting.pop(artifact.path, None)
                heard(_settle(future, artifact, outcome), artifact, outcome)
                outcome.places.pop(artifact.path, None)
            _fail_dependants(todo, outcome)
    except BrokenProcessPool as error:
        crew.end(at_once=True)
        raise StagealignError(
            "a worker process was killed, most often for want of memory; free some or use `--workers 1`, then run the "
            "same command again: all that is built stays"
        ) from error
    except BaseException:
        crew.end(at_once=True)
        raise
    crew.end(at_once=False)
    return outcome


@contextmanager
def opened(plan: Plan, store: Store, how: Execution) -> Iterator[Crew]:
    """Processes of this machine as crew: as many as `how.workers`, else as many as cores."""
    yield Processes(store, worker_count(plan, how.workers))


class Processes:
    """Worker processes of this machine, each with its share of the cores; they start with the first artifact."""

    about = ""

    def __init__(self, store: Store, size: int):
        self.store, self.size, self.slots = store, size, size
        self._context = get_context("spawn")
        self._said = self._context.SimpleQueue()
        self._begun: list[str] = []

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.size)
        log = log_of(self.store.home)
        return ProcessPoolExecutor(self.size, self._context, _start, (_prepare, self._said, threads, log))

    def submit(self, artifact: Artifact) -> Future[bool | str]:
        self._begun.append(artifact.path)
        with _unheard(signal.SIGINT):  # workers are ended by us, whatever the terminal sends them
            return self._pool.submit(_build, artifact, self.store)

    def news(self) -> Iterator[tuple[str, str, str]]:
        while self._begun:
            yield self._begun.pop(0), "started", ""
        while not self._said.empty():
            yield self._said.get()

    def end(self, at_once: bool) -> None:
        if at_once:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=not at_once, cancel_futures=at_once)


def _settle(future: Future[bool | str], artifact: Artifact, outcome: Outcome) -> str:
    """`built`, `found` or `failed`, noted in the outcome. Raises BrokenProcessPool."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    made = future.result() if error is None else f"{type(error).__name__}: {error}"
    if isinstance(made, str):
        outcome.failed[artifact.path] = without_secrets(made)
        return "failed"
    (outcome.built if made else outcome.found).add(artifact.path)
    return "built" if made else "found"


def _hear(
    crew: Crew, running: dict[Future[bool | str], Artifact], begun: set[str], outcome: Outcome, heard: Listener
) -> None:
    """Passes on what began, and whom a builder waits for."""
    building = {artifact.path: artifact for artifact in running.values()}
    for path, word, who in crew.news():
        artifact = building.get(path)
        if artifact is None:
            continue
        if word == "waiting":
            _begin(artifact, begun, outcome, heard)
            outcome.waiting[path] = who
            heard("waiting", artifact, outcome)
            continue
        outcome.places[path] = who
        if path in begun:
            heard("again", artifact, outcome)
        _begin(artifact, begun, outcome, heard)


def _begin(artifact: Artifact, begun: set[str], outcome: Outcome, heard: Listener) -> None:
    """Tells once that an artifact was begun, whichever of its news comes first."""
    if artifact.path not in begun:
        begun.add(artifact.path)
        heard("started", artifact, outcome)


def log_of(home: Path, name: str = "workers.log") -> Path:
    """The file that takes what workers print, there and open to writing. Raises StagealignError where it cannot be."""
    log = home / name
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    except OSError as error:
        raise room_error(log, error) or error from error
    return log


@contextmanager
def _unheard(number: int) -> Iterator[None]:
    """Holds a signal back; a process that is started meanwhile never hears it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _startable(todo: dict[str, Artifact], running: dict[Future[bool | str], Artifact], size: int) -> list[Artifact]:
    """Artifacts whose inputs are ready, parents first as in the plan, as many as there is room for."""
    busy = set(todo) | {artifact.path for artifact in running.values()}
    ready = [a for a in todo.values() if not any(parent.path in busy for parent in a.inputs.values())]
    return ready[: size - len(running)]


def _fail_dependants(todo: dict[str, Artifact], outcome: Outcome) -> None:
    for path, artifact in list(todo.items()):
        broken = [parent.path for parent in artifact.inputs.values() if parent.path in outcome.failed]
        if broken:
            root = outcome.stopped.get(broken[0], broken[0])
            outcome.stopped[path] = root
            outcome.failed[path] = f"it needs {root}, which failed: {outcome.failed[root]}"
            del todo[path]


_said: Any = None
"""Where this worker says whom it waits for."""


def _start(prepare: Callable[[int, Path], None], said: Any, threads: int, log: Path) -> None:
    """Sets a worker up, one that ends with the process that started it, however that ends."""
    global _said
    _said = said
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    prepare(threads, log)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # what this process started itself ends with it: see `devices`
        time.sleep(LONGEST_END)
        os._exit(1)


def _prepare(threads: int, log: Path) -> None:
    """Prepares a worker of this machine: the interrupt of a terminal is not for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet(threads, log)


def quiet(threads: int, log: Path) -> None:
    """Prepares a process that builds: its share of the cores, no hub, and what libraries print goes to a log."""
    printing_to(log)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _build(artifact: Artifact, store: Store) -> bool:
    """Whether it was this worker that built it."""
    return store.obtain(artifact, lambda path, who: _said.put((path, "waiting", who)))[1]
