"""What a set of runs would build, why, and at what cost: the plan with its prices, before anything is built."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.base.errors import UnknownName
from stagealign.grid.cell import Cell, Scale
from stagealign.pipeline.rounds import plan_run
from stagealign.pipeline.run import Run
from stagealign.plan import flops as cost
from stagealign.plan.flops import GIB, Processor
from stagealign.plan.machine import lacking
from stagealign.plan.price import Estimate, estimate
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store

READY, NEW, CHANGED = "ready", "new", "changed"
"""States: built as the spec says; not built; something of another spec stands at its path and must be removed first."""


@dataclass(frozen=True)
class Item:
    """One artifact of the plan."""

    artifact: Artifact
    cells: tuple[str, ...]
    state: str
    reason: str
    """Why it would be built; empty where it is ready."""
    cost: Estimate
    seconds: float
    """On one processor."""

    def plain(self, processor: Processor) -> dict[str, Any]:
        """The item as `--json` writes it; hours and seconds are those of building it, ready or not."""
        return {
            "id": self.artifact.path,
            "kind": self.cost.kind,
            "cells": list(self.cells),
            "state": self.state,
            "reason": self.reason,
            "tokens": round(self.cost.tokens),
            "flops": float(f"{sum(self.cost.flops.values()):.4g}"),
            "gpu_hours": round(self.seconds / 3600, 4) if processor.gpu else 0.0,
            "cpu_seconds": 0.0 if processor.gpu else round(self.seconds, 1),
            "peak_memory_gib": round(self.cost.memory / GIB, 2),
            "disk_gib": round(self.cost.disk / GIB, 4),
            "judge_dollars": round(self.cost.judge_dollars, 2),
        }


@dataclass(frozen=True)
class Outlook:
    """The plan with its prices."""

    scale: Scale
    cells: tuple[Cell, ...]
    runs: int
    standing: int
    """Runs left out because their results stand already."""
    processor: Processor
    items: tuple[Item, ...]
    """Each artifact once, parents first."""
    unshared: int
    """Artifacts that would be needed if cells shared nothing."""
    unshared_seconds: float
    lacks: tuple[str, ...] = ()
    """What this machine lacks to do it."""
    revisions: Mapping[str, str | None] = field(default_factory=dict)
    """Of weights that the registry does not pin, the commit that the store's record says they are of."""

    @cached_property
    def to_build(self) -> list[Item]:
        return [item for item in self.items if item.state != READY]

    @property
    def seconds(self) -> float:
        """Of what would be built, on one processor, one artifact after another."""
        return sum(item.seconds for item in self.to_build)

    @property
    def critical_seconds(self) -> float:
        """Of the longest line of artifacts of which each needs the one before: no number of processors beats it."""
        left = {item.artifact.path: item.seconds if item.state != READY else 0.0 for item in self.items}
        ends: dict[str, float] = {}
        for item in self.items:
            before = (ends[parent.path] for parent in item.artifact.inputs.values())
            ends[item.artifact.path] = left[item.artifact.path] + max(before, default=0.0)
        return max(ends.values(), default=0.0)

    def totals(self) -> dict[str, Any]:
        """Sums over what would be built; memory is the largest."""
        costs = [item.cost for item in self.to_build]
        hours = self.seconds / 3600
        gpu = self.processor.gpu
        return {
            "runs": self.runs,
            "artifacts": len(self.items),
            "ready": len(self.items) - len(costs),
            "to_build": len(costs),
            "without_sharing": self.unshared,
            "tokens": round(sum(one.tokens for one in costs)),
            "flops": float(f"{sum(sum(one.flops.values()) for one in costs):.4g}"),
            "gpu_hours": round(hours, 2) if gpu else 0.0,
            "cpu_seconds": 0.0 if gpu else round(self.seconds, 1),
            "gpu_hours_without_sharing": round(self.unshared_seconds / 3600, 2) if gpu else 0.0,
            "gpu_dollars": round(hours * self.processor.dollars, 2),
            "peak_memory_gib": round(max((one.memory for one in costs), default=0.0) / GIB, 2),
            "disk_gib": round(sum(one.disk for one in costs) / GIB, 2),
            "judge_dollars": round(sum(one.judge_dollars for one in costs), 2),
        }

    def plain(self) -> dict[str, Any]:
        """The outlook as `--json` writes it."""
        return {
            "scale": self.scale.key,
            "processor": self.processor.key,
            "artifacts": [item.plain(self.processor) for item in self.items],
            "totals": self.totals(),
            "machine_lacks": list(self.lacks),
            "unpinned": dict(self.revisions),
        }


def processor(name: str | None, scale: Scale) -> Processor:
    """The processor that is asked for: a GPU by name, or `cpu`; by default what the scale is made for.

    Raises UnknownName.
    """
    known = {**cost.GPUS, cost.CPU.key: cost.CPU}
    name = name or ("h200" if scale.key == "paper" else "cpu")
    if name.lower() not in known:
        raise UnknownName("GPU", name, known)
    return known[name.lower()]


def make_outlook(
    scale: Scale,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    store: Store,
    on: Processor,
    stands: Callable[[Run], bool] = lambda run: False,
    again: bool = False,
) -> Outlook:
    """The outlook of all cells with all seeds; runs whose results stand are left out unless `again`."""
    asked = [plan_run(cell, seed) for seed in seeds for cell in cells]
    standing = {run.id for run in asked if stands(run)}
    runs = [run for run in asked if again or run.id not in standing]
    wanted: dict[str, list[Run]] = {}
    artifacts: dict[str, Artifact] = {}
    for run in runs:
        for path, artifact in run.artifacts.items():
            artifacts.setdefault(path, artifact)
            wanted.setdefault(path, []).append(run)
    store.look(artifacts.values())
    items = []
    for path, artifact in artifacts.items():
        forced = all(run.id in standing for run in wanted[path])
        state, reason = _state(artifact, store, forced)
        price = estimate(artifact, scale.key)
        names = tuple(dict.fromkeys(run.cell.id for run in wanted[path]))
        items.append(Item(artifact, names, state, reason, price, price.seconds(on)))
    shared = {item.artifact.path: item.seconds for item in items}
    disk = sum(item.cost.disk for item in items if item.state != READY)
    return Outlook(
        scale,
        tuple(cells),
        len(runs),
        len(asked) - len(runs),
        on,
        tuple(items),
        sum(map(len, wanted.values())),
        sum(shared[path] * len(mine) for path, mine in wanted.items()),
        tuple(lacking(scale, cells, disk, [one.artifact for one in items if one.state != READY], store.home))
        if runs
        else (),
        _revisions(artifacts.values(), store),
    )


def _revisions(artifacts: Iterable[Artifact], store: Store) -> dict[str, str | None]:
    """Weights and data without a pinned revision -> the commit in their record, None before the first fetch."""
    found: dict[str, str | None] = {}
    for artifact in artifacts:
        named = [artifact.params[name] for name in ("checkpoint", "weights", "data") if name in artifact.params]
        source = next(iter(named), None)
        if source and "revision" in artifact.params and artifact.params["revision"] is None:
            built = store.changes(artifact) == []
            found[str(source)] = (store.record(artifact) or {})["facts"].get("revision") if built else None
    return found


def _state(artifact: Artifact, store: Store, forced: bool) -> tuple[str, str]:
    """(state, reason) of an artifact; `forced`: only runs whose results stand need it."""
    changes = store.changes(artifact)
    if changes is None:
        return NEW, "forced: its results stand, and --again asks for them" if forced else "new"
    if not changes:
        return READY, ""
    inputs = [one.removeprefix("inputs.").partition(" was ")[0] for one in changes if one.startswith("inputs.")]
    others = [one for one in changes if not one.startswith("inputs.")]
    said = [f"changed: {'; '.join(others)}"] * bool(others) + [f"input changed: {', '.join(inputs)}"] * bool(inputs)
    return CHANGED, "; ".join(said)


def by_kind(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Items by kind, in the order in which the first of each comes."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item.cost.kind, []).append(item)
    return kinds


def write(found: Outlook, json_file: str) -> None:
    """Writes the outlook as JSON; `-` is standard output."""
    text = json.dumps(found.plain(), indent=1, allow_nan=False) + "\n"
    if json_file == "-":
        print(text, end="")
        return
    path = Path(json_file)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
