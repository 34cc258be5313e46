"""Plans of runs: what to build, why, and at what cost; one plan serves `run`, `plan` and the cost tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from stagealign.base.errors import UnknownName
from stagealign.grid.cell import Cell, Scale
from stagealign.pipeline.rounds import plan_run
from stagealign.pipeline.run import Run
from stagealign.plan import flops
from stagealign.plan.flops import GIB, Processor
from stagealign.plan.price import CostEstimate, estimate
from stagealign.plan.remarks import remarks
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store

READY, NEW, CHANGED = "ready", "new", "changed"
"""States: built as the spec says; not built; something of another spec stands at its path and must be removed first."""


@dataclass(frozen=True)
class Wish:
    """Choices about the runs that are not part of their cells."""

    demo: bool = False
    """Whether to try only the recorded learning rate of each round, not the whole ladder."""
    capability: bool = False
    """Whether to measure the capability of policies too."""
    again: bool = False
    """Whether to include runs whose results stand already."""


@dataclass(frozen=True)
class PricedArtifact:
    """One artifact of a plan: its state, the reason to build it, and the cost of building it."""

    artifact: Artifact
    scale: Scale
    """Scale of a cell that needs it."""
    cells: tuple[str, ...]
    state: str
    reason: str
    """Reason to build it; empty if it is ready."""
    cost: CostEstimate
    seconds: float
    """Seconds to build it on one of the plan's processors."""

    def plain(self, processor: Processor) -> dict[str, object]:
        """JSON-ready values; hours and seconds are those of building it, ready or not."""
        return {
            "id": self.artifact.path,
            "kind": self.artifact.role,
            "cells": list(self.cells),
            "state": self.state,
            "reason": self.reason,
            "tokens": round(self.cost.tokens),
            "flops": float(f"{sum(self.cost.flops.values()):.4g}"),
            "gpu_hours": round(self.seconds / 3600, 4) if processor.gpu else 0.0,
            "cpu_seconds": 0.0 if processor.gpu else round(self.seconds, 1),
            "peak_memory_gib": round(self.cost.memory / GIB, 2),
            "disk_gib": round(self.cost.disk / GIB, 4),
            "judge_dollars": dollars_of([self.cost]),
        }


@dataclass(frozen=True)
class Totals:
    """Sums over the artifacts that a plan would build; the memory is that of the largest."""

    runs: int
    artifacts: int
    ready: int
    to_build: int
    without_sharing: int
    """Artifacts that would be needed if cells shared nothing."""
    tokens: int
    flops: float
    gpu_hours: float
    cpu_seconds: float
    gpu_hours_without_sharing: float
    gpu_dollars: float
    peak_memory_gib: float
    disk_gib: float
    judge_dollars: float | None
    """Of judges of known price; None if judges are asked and no price is known."""
    unpriced_judges: tuple[str, ...] = ()
    """Judges that are asked and whose price is unknown."""


def dollars_of(costs: Sequence[CostEstimate]) -> float | None:
    """USD for judges of known price; None if judges are asked and no price is known."""
    known = sum(cost.judge_dollars for cost in costs)
    return None if not known and any(cost.unpriced for cost in costs) else round(known, 2)


@dataclass(frozen=True)
class Plan:
    """Everything that a set of runs needs."""

    scale: Scale
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    items: tuple[PricedArtifact, ...]
    """Each artifact once, parents first."""
    processor: Processor
    wanted: int
    """Artifacts the runs would need if nothing were shared."""
    unshared_seconds: float
    """Seconds to build those."""
    standing: tuple[Run, ...] = ()
    """Runs left out because their results stand already."""
    revisions: Mapping[str, str | None] = field(default_factory=dict)
    """Weights and data without a pinned revision -> the commit in their record, None before the first fetch."""

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """Artifacts by path, parents first."""
        return {item.artifact.path: item.artifact for item in self.items}

    @cached_property
    def ready(self) -> frozenset[str]:
        """Paths of artifacts that the store has."""
        return frozenset(item.artifact.path for item in self.items if item.state == READY)

    @cached_property
    def to_build(self) -> list[PricedArtifact]:
        return [item for item in self.items if item.state != READY]

    @property
    def missing(self) -> list[Artifact]:
        """Artifacts to build, parents first."""
        return [item.artifact for item in self.to_build]

    @cached_property
    def seconds_of(self) -> dict[str, float]:
        """Expected seconds on one processor, by path."""
        return {item.artifact.path: item.seconds for item in self.items}

    @property
    def seconds(self) -> float:
        """Seconds to build everything missing on one processor, one artifact after another."""
        return sum(item.seconds for item in self.to_build)

    @property
    def critical_seconds(self) -> float:
        """Seconds of the longest chain of artifacts that need each other: no number of processors is faster."""
        left = {item.artifact.path: item.seconds if item.state != READY else 0.0 for item in self.items}
        ends: dict[str, float] = {}
        for item in self.items:
            before = (ends[parent.path] for parent in item.artifact.inputs.values())
            ends[item.artifact.path] = left[item.artifact.path] + max(before, default=0.0)
        return max(ends.values(), default=0.0)

    @property
    def disk(self) -> float:
        """Bytes to write."""
        return sum(item.cost.disk for item in self.to_build)

    @property
    def by_role(self) -> dict[str, list[PricedArtifact]]:
        """Artifacts by role, in order of the first of each."""
        roles: dict[str, list[PricedArtifact]] = {}
        for item in self.items:
            roles.setdefault(item.artifact.role, []).append(item)
        return roles

    @property
    def totals(self) -> Totals:
        costs = [item.cost for item in self.to_build]
        hours = self.seconds / 3600
        gpu = self.processor.gpu
        return Totals(
            runs=len(self.runs),
            artifacts=len(self.items),
            ready=len(self.items) - len(costs),
            to_build=len(costs),
            without_sharing=self.wanted,
            tokens=round(sum(cost.tokens for cost in costs)),
            flops=float(f"{sum(sum(cost.flops.values()) for cost in costs):.4g}"),
            gpu_hours=round(hours, 2) if gpu else 0.0,
            cpu_seconds=0.0 if gpu else round(self.seconds, 1),
            gpu_hours_without_sharing=round(self.unshared_seconds / 3600, 2) if gpu else 0.0,
            gpu_dollars=round(hours * self.processor.dollars, 2),
            peak_memory_gib=round(max((cost.memory for cost in costs), default=0.0) / GIB, 2),
            disk_gib=round(sum(cost.disk for cost in costs) / GIB, 2),
            judge_dollars=dollars_of(costs),
            unpriced_judges=tuple(sorted({cost.unpriced for cost in costs if cost.unpriced})),
        )

    def plain(self, lacks: Sequence[str]) -> dict[str, object]:
        """JSON-ready values, with what the machine lacks."""
        return {
            "scale": self.scale.key,
            "processor": self.processor.key,
            "artifacts": [item.plain(self.processor) for item in self.items],
            "totals": vars(self.totals),
            "remarks": list(remarks(self.to_build)),
            "machine_lacks": list(lacks),
            "unpinned": dict(self.revisions),
        }


def processor(name: str | None, scale: Scale) -> Processor:
    """The processor called `name`, a GPU or `cpu`; by default the one that the scale is made for.

    Raises UnknownName.
    """
    known = {**flops.GPUS, flops.CPU.key: flops.CPU}
    key = (name or scale.processor).lower()
    if key not in known:
        raise UnknownName("GPU", name or scale.processor, known, listed=False)
    return known[key]


def make_plan(
    cells: Iterable[Cell],
    seeds: Sequence[int],
    store: Store,
    wish: Wish = Wish(),
    stands: Callable[[Run], bool] = lambda run: False,
    on: Processor | None = None,
) -> Plan:
    """The plan of all cells with all seeds, priced for the processor `on`, by default the one of their scale.

    Runs for which `stands` is true are left out unless `wish.again`. Nothing is built or refused: an artifact of
    another spec in the store is `CHANGED`. Raises Damaged for a record that changed since it was written.
    """
    cells = tuple(cells)
    asked = tuple(plan_run(cell, seed, wish.demo, wish.capability) for seed in seeds for cell in cells)
    finished = {run.id for run in asked if stands(run)}
    runs = tuple(run for run in asked if wish.again or run.id not in finished)
    wanted: dict[str, list[Run]] = {}
    artifacts: dict[str, Artifact] = {}
    for run in runs:
        for path, artifact in run.artifacts.items():
            known = artifacts.setdefault(path, artifact)
            assert known.fingerprint == artifact.fingerprint, f"{path}: two specs share this path"
            wanted.setdefault(path, []).append(run)
    store.look(artifacts.values())
    on = on or processor(None, cells[0].scale)
    items = tuple(_priced(artifact, wanted[path], store, finished, on) for path, artifact in artifacts.items())
    return Plan(
        scale=cells[0].scale,
        cells=cells,
        runs=runs,
        items=items,
        processor=on,
        wanted=sum(map(len, wanted.values())),
        unshared_seconds=sum(item.seconds * len(wanted[item.artifact.path]) for item in items),
        standing=tuple(run for run in asked if run not in runs),
        revisions=_revisions(items, store),
    )


def _priced(artifact: Artifact, runs: Sequence[Run], store: Store, finished: set[str], on: Processor) -> PricedArtifact:
    """One artifact that `runs` need, with its state in the store and its price."""
    scale = runs[0].cell.scale
    state, reason = _state(artifact, store, forced=all(run.id in finished for run in runs))
    cost = estimate(artifact, scale)
    names = tuple(dict.fromkeys(run.cell.id for run in runs))
    return PricedArtifact(artifact, scale, names, state, reason, cost, cost.seconds(on))


def _state(artifact: Artifact, store: Store, forced: bool) -> tuple[str, str]:
    """(state, reason) of an artifact; `forced`: only runs whose results stand need it."""
    changes, shared = store.standing(artifact)
    if changes is None:
        return NEW, "forced: its results stand, and --again asks for them" if forced else "new"
    if not changes:
        return (READY, "") if shared else (NEW, "built here, but not yet in the shared store")
    of_inputs = [change.removeprefix("inputs.") for change in changes if change.startswith("inputs.")]
    inputs = [change.partition(" was ")[0] for change in of_inputs]
    others = [change for change in changes if not change.startswith("inputs.")]
    reasons = [f"changed: {'; '.join(others)}"] * bool(others) + [f"input changed: {', '.join(inputs)}"] * bool(inputs)
    return CHANGED, "; ".join(reasons)


def _revisions(items: Iterable[PricedArtifact], store: Store) -> dict[str, str | None]:
    """Weights and data without a pinned revision -> the commit in their record, None before the first fetch."""
    commits: dict[str, str | None] = {}
    for item in items:
        artifact = item.artifact
        named = [artifact.params[name] for name in ("checkpoint", "weights", "data") if name in artifact.params]
        source = next(iter(named), None)
        if source and "revision" in artifact.params and artifact.params["revision"] is None:
            commit = store.facts(artifact).get("revision") if item.state != CHANGED else None
            commits[str(source)] = None if commit is None else str(commit)
    return commits
