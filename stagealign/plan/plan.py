"""Runs -> unique artifacts: what exists, what would be built, in which order and how long it takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stagealign.grid.cell import Cell
from stagealign.pipeline.rounds import plan_run
from stagealign.pipeline.run import Run
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store


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
    store.look(artifacts.values())
    ready = frozenset(path for path, artifact in artifacts.items() if store.shared(artifact))
    return Plan(runs, artifacts, ready, wanted, standing)
