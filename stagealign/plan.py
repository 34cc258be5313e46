"""Runs -> unique artifacts: what exists, what would be built, in which order and how long it takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stagealign.errors import CannotRun
from stagealign.pipeline import TASKS, Run, plan_run
from stagealign.spec import Cell, Scale
from stagealign.store import Artifact, Store


@dataclass(frozen=True)
class Plan:
    """Everything that a set of runs needs."""

    runs: tuple[Run, ...]
    artifacts: dict[str, Artifact]
    """By path, parents before what is made from them."""
    ready: frozenset[str]
    """Paths that the store has."""
    wanted: int
    """Artifacts the runs would need if nothing were shared."""

    standing: tuple[Run, ...] = ()
    """Runs left out because their results stand already."""

    @cached_property
    def missing(self) -> list[Artifact]:
        """What would be built, parents first."""
        return [artifact for path, artifact in self.artifacts.items() if path not in self.ready]

    @property
    def seconds(self) -> float:
        """Expected seconds of work on one core."""
        return sum(artifact.seconds for artifact in self.missing)


def make_plan(
    cells: Iterable[Cell],
    seeds: Sequence[int],
    store: Store,
    demo: bool = False,
    capability: bool = False,
    stands: Callable[[Run], bool] = lambda run: False,
) -> Plan:
    """The plan of all cells with all seeds, without the runs whose results `stands` says are there already.

    Raises StoreDrift where the store holds an artifact of another spec, before anything is built.
    """
    asked = tuple(plan_run(cell, seed, demo, capability) for seed in seeds for cell in cells)
    standing = tuple(run for run in asked if stands(run))
    runs = tuple(run for run in asked if run not in standing)
    artifacts: dict[str, Artifact] = {}
    wanted = 0
    for run in runs:
        mine = run.artifacts
        wanted += len(mine)
        for path, artifact in mine.items():
            known = artifacts.setdefault(path, artifact)
            assert known.fingerprint == artifact.fingerprint, f"{path}: two specs share this path"
    ready = frozenset(path for path, artifact in artifacts.items() if store.record(artifact) is not None)
    return Plan(runs, artifacts, ready, wanted, standing)


def check_machine(scale: Scale, cells: Iterable[Cell]) -> None:
    """Raises CannotRun, naming everything that is missing, where this machine cannot do the scale."""
    if scale.key != "paper":
        return
    import os
    import shutil

    cells = list(cells)
    missing = []
    bytes_needed = max(cell.checkpoint.parameters for cell in cells) * 16
    memory = _gpu_memory()
    if memory is None:
        missing.append("a GPU: none was found (`nvidia-smi`)")
    elif memory < bytes_needed:
        missing.append(
            f"GPU memory: {bytes_needed / 2**30:.0f} GiB for full fine-tuning, {memory / 2**30:.0f} GiB found"
        )
    disk = 2 * sum({cell.checkpoint.source: cell.checkpoint.parameters * 2 for cell in cells}.values())
    free = shutil.disk_usage(os.path.expanduser("~")).free
    if free < disk:
        missing.append(f"disk: {disk / 2**30:.0f} GiB for weights, {free / 2**30:.0f} GiB free")
    gated = sorted({cell.checkpoint.source for cell in cells if cell.checkpoint.gated})
    if gated and not os.environ.get("HF_TOKEN"):
        missing.append(f"access to gated weights: {', '.join(gated)} (accept the licence, then set HF_TOKEN)")
    if scale.task not in TASKS:
        missing.append(
            f"the data source {scale.task!r} and the oracle {scale.preference.oracle!r}: not part of this version"
        )
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise CannotRun(f"--scale paper: this machine lacks\n{lines}\nUse `--scale lab` for stand-ins on a CPU.")


def _gpu_memory() -> int | None:
    """Bytes of the largest GPU's memory, asked of the driver so that torch need not load."""
    import subprocess

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return max(int(line) for line in lines) * 2**20 if lines else None
