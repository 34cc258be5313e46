"""Crew that builds artifacts as Ray tasks; Ray places them, and restarts a task whose node or process was lost."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from stagealign.base.secrets import without_secrets
from stagealign.execute.executors import Execution
from stagealign.execute.processes import Crew, log_of, quiet
from stagealign.execute.ray.joining import joined
from stagealign.execute.ray.looking import check_nodes
from stagealign.execute.ray.nodes import Node, check_room
from stagealign.plan.needs import Needs, needs_of
from stagealign.plan.plan import Plan
from stagealign.store.artifact import Artifact
from stagealign.store.bucket import Bucketed
from stagealign.store.folder import Store
from stagealign.store.home import default_home

RETRIES = 3
"""Restarts of a task after its node or process was lost."""
PASSED_ON = ("STAGEALIGN_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_OFFLINE")
"""Environment variables that tasks get from this process: where data lies. Secrets stay each node's own."""
LONGEST_END = 30.0
"""Seconds between the cancellation of tasks and their kill."""


class Board:
    """Actor on the driver's node that collects the news of tasks."""

    def __init__(self) -> None:
        self.news: list[tuple[str, str, str]] = []

    def tell(self, path: str, word: str, who: str) -> None:
        self.news.append((path, word, who))

    def read(self) -> list[tuple[str, str, str]]:
        """News since the last read."""
        news, self.news = self.news, []
        return news


@contextmanager
def opened(plan: Plan, store: Store, how: Execution) -> Iterator[Crew]:
    """Crew of a Ray cluster: the one at `how.address`, else of `joining.joined`. Raises CannotRun."""
    with joined(how.address) as (ray, nodes):
        yield RayCrew(ray, nodes, plan, store, how.workers)


def _about(nodes: Sequence[Node]) -> str:
    gpus = sum(node.gpus for node in nodes)
    what = f"{sum(node.cpus for node in nodes)} cores" + f" and {gpus} GPUs" * bool(gpus)
    return f"cluster: {len(nodes)} nodes with {what}: {', '.join(node.name for node in nodes)}"


class RayCrew:
    """Crew of Ray tasks on a joined cluster. Raises CannotRun if the cluster cannot build the plan."""

    def __init__(self, ray: Any, nodes: Sequence[Node], plan: Plan, store: Store, most: int | None):
        """`most`: largest number of artifacts submitted at the same time; None: all missing ones."""
        self.ray, self.store = ray, store
        self.about = _about(nodes)
        store.home = store.home.absolute()
        devices = store.context.devices
        self.needs = {item.artifact.path: needs_of(item.artifact, item.scale, devices) for item in plan.to_build}
        check_room(self.needs, check_nodes(ray, nodes, store, keys=plan.scale.preference.gold_kinds.judge is not None))
        self.size = most or len(plan.missing)
        self.slots = min(self.size, max(1, self._slots(nodes)))
        self._settings = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        here = ray.get_runtime_context().get_node_id()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        beside = NodeAffinitySchedulingStrategy(here, soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=beside).remote()
        self._task = ray.remote(build)
        self._begun: list[Any] = []

    def _slots(self, nodes: Sequence[Node]) -> int:
        """Artifacts that fit on the cluster at the same time, if all need as much as the largest."""
        largest = max(self.needs.values(), key=lambda needs: (needs.gpus, needs.cpus))
        gpus = sum(node.gpus for node in nodes) // largest.gpus if largest.gpus else None
        return sum(node.cpus for node in nodes) // largest.cpus if gpus is None else gpus

    def submit(self, artifact: Artifact) -> "Future[bool | str]":
        needs = self.needs[artifact.path]
        task = self._task.options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory, max_retries=RETRIES, name=artifact.path
        )
        reference = task.remote(artifact, self.store, needs, self._settings, self._board)
        self._begun.append(reference)
        future: Future[bool | str] = reference.future()
        return future

    def news(self) -> Iterator[tuple[str, str, str]]:
        yield from self.ray.get(self._board.read.remote())

    def end(self, at_once: bool) -> None:
        if not at_once:
            return
        for reference in self._begun:
            self.ray.cancel(reference)
        left = self.ray.wait(self._begun, num_returns=len(self._begun), timeout=LONGEST_END)[1] if self._begun else []
        for reference in left:
            self.ray.cancel(reference, force=True)


def build(artifact: Artifact, store: Store, needs: Needs, settings: Mapping[str, str], board: Any) -> bool | str:
    """Task of one artifact: True if it built it, False if another process did, or why it failed, without secrets."""
    host = socket.gethostname()
    board.tell.remote(artifact.path, "started", f"pid {os.getpid()} on {host}")
    if isinstance(store, Bucketed):
        store.home = default_home()  # the node's own folder
    os.environ.update(settings, STAGEALIGN_HOME=str(store.home))
    if not needs.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        quiet(needs.cpus, log_of(store.home, f"workers-{host}.log"))
        return store.obtain(artifact, lambda path, who: board.tell.remote(path, "waiting", who))[1]
    except Exception as error:
        return without_secrets(f"{type(error).__name__}: {error}")
