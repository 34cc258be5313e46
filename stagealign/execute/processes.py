"""Loop that has a crew build a plan's missing artifacts, and the crew of processes on this machine."""

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
    """Outcome of a plan's execution so far; sets and keys are artifact paths."""

    built: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    """Artifacts that another process built meanwhile."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Artifact that another process builds -> that process, as `pid 12 on host`."""
    places: dict[str, str] = field(default_factory=dict)
    """Artifact that is being built -> its process, as `pid 12 on host`; empty for a worker of this machine."""
    failed: dict[str, str] = field(default_factory=dict)
    """Failed artifact -> reason; artifacts that depend on it are included."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Artifact that was not tried -> the failed artifact that it depends on."""


Listener = Callable[[str, Artifact, Outcome], None]
"""Receives an event (those of `carry_out.Listener`), its artifact, and the outcome so far."""
LONGEST_END = 30.0
"""Seconds that a worker whose parent has ended gets to end its own processes."""
LOOK = 0.5
"""Seconds between two reads of the workers' news."""


def worker_count(plan: Plan, asked: int | None) -> int:
    """Number of workers for a plan: as asked, at most the number of cores and of missing artifacts, at least 1."""
    cores = os.cpu_count() or 1
    return max(1, min(asked or cores, cores, len(plan.missing)))


class Crew(Protocol):
    """Builder of artifacts, such as the processes of this machine or a cluster."""

    size: int
    """Largest number of artifacts submitted at the same time."""
    slots: int
    """Expected number of artifacts built at the same time, from which the time left is estimated."""
    about: str
    """One line that names the builders; empty for this machine."""

    def submit(self, artifact: Artifact) -> Future[bool | str]:
        """Starts a build. The future holds True if built, False if found built, or why it failed, as text or error."""

    def news(self) -> Iterator[tuple[str, str, str]]:
        """Yields news since the last call: (path, `started` or `waiting`, the builder's process)."""

    def end(self, at_once: bool) -> None:
        """Releases the crew; `at_once` also ends running builds."""


def execute(plan: Plan, store: Store, crew: Crew, heard: Listener) -> Outcome:
    """Builds what is missing; a failure stops only the artifacts that depend on it.

    KeyboardInterrupt ends running builds and keeps finished artifacts. Raises StagealignError if a worker was killed.
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
            "a worker process was killed, most often because memory ran out; free some or use `--workers 1`, then run "
            "the same command again: all that is built stays"
        ) from error
    except BaseException:
        crew.end(at_once=True)
        raise
    crew.end(at_once=False)
    return outcome


@contextmanager
def opened(plan: Plan, store: Store, how: Execution) -> Iterator[Crew]:
    """Crew of processes of this machine: `how.workers`, by default as many as cores."""
    yield Processes(store, worker_count(plan, how.workers))


class Processes:
    """Crew of worker processes of this machine, each with its share of the cores; started by the first artifact."""

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
        with _unheard(signal.SIGINT):  # Ctrl-C reaches workers too, but only the parent may end them
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
    """Records how a build ended and returns its event: `built`, `found` or `failed`. Raises BrokenProcessPool."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    built = future.result() if error is None else f"{type(error).__name__}: {error}"
    if isinstance(built, str):
        outcome.failed[artifact.path] = without_secrets(built)
        return "failed"
    (outcome.built if built else outcome.found).add(artifact.path)
    return "built" if built else "found"


def _hear(
    crew: Crew, running: dict[Future[bool | str], Artifact], begun: set[str], outcome: Outcome, heard: Listener
) -> None:
    """Passes on the crew's news: builds that started, and builds that wait for another process."""
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
    """Reports an artifact as started, at the first news of it only."""
    if artifact.path not in begun:
        begun.add(artifact.path)
        heard("started", artifact, outcome)


def log_of(home: Path, name: str = "workers.log") -> Path:
    """File for the output of workers, created if missing. Raises StagealignError if it cannot be written."""
    log = home / name
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    except OSError as error:
        raise room_error(log, error) or error from error
    return log


@contextmanager
def _unheard(number: int) -> Iterator[None]:
    """Blocks a signal inside the block; a process started there keeps it blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _startable(todo: dict[str, Artifact], running: dict[Future[bool | str], Artifact], size: int) -> list[Artifact]:
    """Artifacts to start now: those with all inputs ready, in the plan's order, up to `size` running ones."""
    busy = set(todo) | {artifact.path for artifact in running.values()}
    ready = [a for a in todo.values() if not any(parent.path in busy for parent in a.inputs.values())]
    return ready[: size - len(running)]


def _fail_dependants(todo: dict[str, Artifact], outcome: Outcome) -> None:
    """Moves artifacts with a failed input from `todo` to the outcome's failed and stopped ones."""
    for path, artifact in list(todo.items()):
        broken = [parent.path for parent in artifact.inputs.values() if parent.path in outcome.failed]
        if broken:
            root = outcome.stopped.get(broken[0], broken[0])
            outcome.stopped[path] = root
            outcome.failed[path] = f"it needs {root}, which failed: {outcome.failed[root]}"
            del todo[path]


_said: Any = None
"""Queue on which this worker tells its parent which process it waits for."""


def _start(prepare: Callable[[int, Path], None], said: Any, threads: int, log: Path) -> None:
    """Initializes a worker, which ends when its parent ends, even if the parent is killed."""
    global _said
    _said = said
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    prepare(threads, log)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(
            os.getpid(), signal.SIGTERM
        )  # its handler ends the processes that a build launched: see `base.processes.told_to_end`
        time.sleep(LONGEST_END)
        os._exit(1)


def _prepare(threads: int, log: Path) -> None:
    """Prepares a worker of this machine, which ignores a terminal's Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet(threads, log)


def quiet(threads: int, log: Path) -> None:
    """Prepares a process that builds: limits its threads, turns the hub off, sends the output of libraries to a log."""
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
    """Obtains an artifact; True if this worker built it, False if another process did."""
    return store.obtain(artifact, lambda path, who: _said.put((path, "waiting", who)))[1]
