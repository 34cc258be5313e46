"""Runs a plan's missing artifacts on worker processes, side by side where cores allow, with progress."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from stagealign.errors import StagealignError
from stagealign.hidden import without_secrets
from stagealign.plan import Plan
from stagealign.store import Artifact, Store, room_error


@dataclass
class Outcome:
    """What a plan's execution did."""

    built: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    """Paths that another process had built by the time that they were needed."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Path that another process builds -> who, as `pid 12 on host`."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why; what depends on it is listed too."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Path of what was not tried -> the failed path that it depends on."""


Listener = Callable[[str, Artifact, Outcome], None]
"""Told `started`, `waiting`, `built`, `found` or `failed`, the artifact, and the outcome so far."""
LONGEST_END = 30.0
"""Seconds that a worker without its parent has to end what it started."""
LOOK = 0.5
"""Seconds between two looks at what workers say."""


def worker_count(plan: Plan, asked: int | None) -> int:
    """Workers that a plan gets: as many as cores, or as asked, never more than there is work."""
    cores = os.cpu_count() or 1
    return max(1, min(asked or cores, cores, len(plan.missing)))


def execute(plan: Plan, store: Store, workers: int | None, heard: Listener) -> Outcome:
    """Builds what is missing; a failure stops what depends on it and nothing else.

    Each worker uses its share of the cores. KeyboardInterrupt ends the workers and leaves finished artifacts in place.
    """
    outcome = Outcome()
    todo = {artifact.path: artifact for artifact in plan.missing}
    if not todo:
        return outcome
    workers = worker_count(plan, workers)
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: dict[Future[bool], Artifact] = {}
    context = get_context("spawn")
    said, log = context.SimpleQueue(), _log(store)
    pool = ProcessPoolExecutor(workers, context, _start, (_prepare, said, threads, log))
    try:
        while todo or running:
            for artifact in _startable(todo, running, outcome, workers):
                heard("started", artifact, outcome)
                with _unheard(signal.SIGINT):  # workers are ended by us, whatever the terminal sends them
                    running[pool.submit(_build, artifact, store)] = todo.pop(artifact.path)
            if not running:
                break
            done, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
            _hear(said, running, outcome, heard)
            for future in done:
                artifact = running.pop(future)
                outcome.waiting.pop(artifact.path, None)
                heard(_settle(future, artifact, outcome), artifact, outcome)
            _fail_dependants(todo, outcome)
    except BrokenProcessPool as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise StagealignError(
            "a worker process was killed, most often for want of memory; free some or use `--workers 1`, then run the "
            "same command again: all that is built stays"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return outcome


def _settle(future: Future[bool], artifact: Artifact, outcome: Outcome) -> str:
    """`built`, `found` or `failed`, noted in the outcome. Raises BrokenProcessPool."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    if error is not None:
        outcome.failed[artifact.path] = without_secrets(f"{type(error).__name__}: {error}")
        return "failed"
    made = future.result()
    (outcome.built if made else outcome.found).add(artifact.path)
    return "built" if made else "found"


def _hear(said: Any, running: dict[Future[bool], Artifact], outcome: Outcome, heard: Listener) -> None:
    """Passes on whom workers wait for."""
    while not said.empty():
        path, who = said.get()
        for artifact in running.values():
            if artifact.path == path:
                outcome.waiting[path] = who
                heard("waiting", artifact, outcome)


def _log(store: Store) -> Path:
    """The file that takes what workers print, there and open to writing. Raises StagealignError where it cannot be."""
    log = store.home / "workers.log"
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


def _startable(
    todo: dict[str, Artifact], running: dict[Future[bool], Artifact], outcome: Outcome, workers: int
) -> list[Artifact]:
    """Artifacts whose inputs are ready, the longest line of work first, as many as workers are free."""
    busy = set(todo) | {artifact.path for artifact in running.values()}
    ready = [a for a in todo.values() if not any(parent.path in busy for parent in a.inputs.values())]
    return ready[: workers - len(running)]


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
    """Prepares a worker: its share of the cores, no hub, and what libraries print goes to a log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
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
    return store.obtain(artifact, lambda path, who: _said.put((path, who)))[1]
