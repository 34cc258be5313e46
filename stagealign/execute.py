"""Runs a plan's missing artifacts on worker processes, side by side where cores allow, with progress."""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from stagealign.devices import Devices
from stagealign.errors import StagealignError
from stagealign.hidden import without_secrets
from stagealign.plan import Plan
from stagealign.store import Artifact, Store


@dataclass
class Outcome:
    """What a plan's execution did."""

    built: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why; what depends on it is listed too."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Path of what was not tried -> the failed path that it depends on."""


Listener = Callable[[str, Artifact, Outcome], None]
"""Told `started`, `built` or `failed`, the artifact, and the outcome so far."""


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
    running: dict[Future[None], Artifact] = {}
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (threads, store.home / "workers.log"))
    try:
        while todo or running:
            for artifact in _startable(todo, running, outcome, workers):
                heard("started", artifact, outcome)
                running[pool.submit(_build, artifact, store.home, store.devices)] = todo.pop(artifact.path)
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                artifact = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is None:
                    outcome.built.add(artifact.path)
                else:
                    outcome.failed[artifact.path] = without_secrets(f"{type(error).__name__}: {error}")
                heard("failed" if error else "built", artifact, outcome)
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


def _startable(
    todo: dict[str, Artifact], running: dict[Future[None], Artifact], outcome: Outcome, workers: int
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


def _prepare(threads: int, log: Path) -> None:
    """Sets a worker up: its share of the cores, no hub, and what libraries print goes to a log, not to the terminal."""
    import signal

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


def _build(artifact: Artifact, home: Path, devices: Devices) -> None:
    Store(home, devices).build(artifact)
