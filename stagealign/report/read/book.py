"""Results of one scale, joined: each rung and each policy once, even if several cells share it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData
from stagealign.grid import methods as methods_room
from stagealign.grid import models as models_room
from stagealign.grid import registry, samplers, scales
from stagealign.report.read.cells import words_for
from stagealign.report.read.moved import spec_moved
from stagealign.report.read.rungs import SPLIT, MeasuredPolicy, Rung, Start
from stagealign.report.read.sides import ordered, source_place
from stagealign.store.result_types import Result, is_done
from stagealign.store.results import ARCHIVE, read_results

OWN_SAMPLER = ""
"""Sampler of a row whose spec names none."""


@dataclass(frozen=True)
class Book:
    """Everything that one scale's reports are made from."""

    scale: str
    results: tuple[Result, ...]
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    """Runs of the grid without a result file, as `cell-seedK`."""
    rungs: tuple[Rung, ...]
    policies: tuple[MeasuredPolicy, ...]
    archived: str = ""
    """Version of stagealign that made the results, if they lie in an archive; else empty."""

    @property
    def place(self) -> str:
        """Folder of the scale's pages below that of the reports."""
        return f"{ARCHIVE}/{self.archived}/{self.scale}" if self.archived else self.scale

    @property
    def starts(self) -> list[Start]:
        """Starting policies with at least one rung, in the registry's order of models and methods."""
        starts = {rung.start for rung in self.rungs}
        return sorted(
            starts, key=lambda start: (*order(start.model, start.method), len(start.before), start.before[::-1])
        )

    def ladder(self, start: Start, source: str, state: str = "done") -> list[Rung]:
        """Rungs of one start and source over all seeds, by learning rate and seed."""
        return self._ladders.get((start, source, state), [])

    def sources(self, start: Start) -> list[str]:
        """Sources of the rungs from one start, in the grid's order."""
        return ordered(self._sources.get(start, []))

    @cached_property
    def _sources(self) -> dict[Start, list[str]]:
        sources: dict[Start, list[str]] = {}
        for start, source, _ in self._ladders:
            sources.setdefault(start, []).append(source)
        return sources

    @cached_property
    def _ladders(self) -> dict[tuple[Start, str, str], list[Rung]]:
        ladders: dict[tuple[Start, str, str], list[Rung]] = {}
        for rung in self.rungs:
            ladders.setdefault((rung.start, rung.source, rung.state), []).append(rung)
        return ladders

    def policy(self, start: Start) -> list[MeasuredPolicy]:
        """Measurements of a starting policy, one for each seed."""
        key = (start.model, start.method if start.before else self.shared(start.method), start.before)
        return [policy for policy in self.policies if policy.key == key]

    def model(self, key: str) -> Mapping[str, Any]:
        """The results' entry of a model, the one with the most fields; key and name alone if there is none."""
        return max(self._models.get(key, []), key=len, default={"key": key, "name": key})

    @cached_property
    def _models(self) -> dict[str, list[Mapping[str, Any]]]:
        models: dict[str, list[Mapping[str, Any]]] = {}
        for result in self.results:
            models.setdefault(result["model"]["key"], []).append(result["model"])
        return models

    def label(self, key: str) -> str:
        """`Zephyr stand-in`, `Pythia (random weights)` or `Zephyr`."""
        return label(self.model(key), self.scale)

    @property
    def methods(self) -> list[str]:
        """Methods with at least one row that counts for claims."""
        return list(self._rows)

    def shared(self, row: str) -> str:
        """Suffix of a row's start: `_vllm` or `_name-of-gold` for another sampler or gold reward, else empty."""
        return self._shared.get(row, "")

    @cached_property
    def _shared(self) -> dict[str, str]:
        return {result["method"]["key"]: _beside(result) for result in self.results}

    def rows_of(self, method: str) -> list[str]:
        """Keys of the rows that count for claims about a method: the scale's own gold reward, any sampler.

        The first row that has a result counts. The order was fixed before any result: our own sampler, then the others
        as `grid.samplers` lists them.
        """
        order = [OWN_SAMPLER, *samplers.SAMPLERS]
        return sorted(self._rows.get(method, {}), key=lambda row: order.index(self._rows[method][row]))

    @cached_property
    def _rows(self) -> dict[str, dict[str, str]]:
        """Method -> row -> its sampler, without the rows of another gold reward."""
        rows: dict[str, dict[str, str]] = {}
        for result in self.results:
            row, method = result["method"]["key"], result["spec"].get("method", {}).get("key")
            sampler = (result["spec"].get("scale", {}).get("engine") or {}).get("key", OWN_SAMPLER)
            if row == "_".join(filter(None, (method, sampler))):
                rows.setdefault(method, {})[row] = sampler
        return rows

    @property
    def stand_ins(self) -> bool:
        """Whether any result has weights other than the paper's checkpoints."""
        return not self.replicates or any(
            weights(result["model"], self.scale) != "published" for result in self.results
        )

    @property
    def replicates(self) -> bool:
        """Whether the scale repeats the paper's own experiment; False for a scale that the registry does not have."""
        return self.scale in scales.SCALES and registry.scale(self.scale).replicates

    @property
    def plumbing(self) -> bool:
        """Whether the scale only checks that the path runs, so that its numbers mean nothing."""
        return self.scale in scales.SCALES and registry.scale(self.scale).plumbing


def open_book(folder: Path, scale: str, cells: Collection[str] | None = None, archived: str = "") -> Book:
    """Results in `folder/<scale>`, restricted to `cells` (ids) unless it is None.

    Results of a spec that the registry no longer has are left out, unless they are of an `archived` version.
    """
    results, damaged = [], []
    for path, result in read_results(folder, scale):
        if isinstance(result, BadData):
            damaged.append((path.stem, str(result).replace(str(folder), folder.name)))
        elif cells is None or result["cell"] in cells:
            moved = None if archived else spec_moved(result)
            if moved:
                again = f"run it again: `stagealign run {words_for(result)}`"
                text = f"{path}: of another spec than the registry has now ({moved}); {again}"
                damaged.append((path.stem, text.replace(str(folder), folder.name)))
            else:
                results.append(result)
    present = {f"{r['cell']}-seed{r['seed']}" for r in results} | {name for name, _ in damaged}
    missing = [name for name in _grid(scale, cells) if name not in present]
    results.sort(key=lambda r: (*order(r["model"]["key"], r["method"]["key"]), r["schedule"], r["seed"]))
    return Book(
        scale,
        tuple(results),
        tuple(text for _, text in damaged),
        tuple(missing),
        _rungs(results),
        _policies(results),
        archived,
    )


def label(model: Mapping[str, Any], scale: str) -> str:
    """Name of a model, with a remark if it is a stand-in or has random weights."""
    remark = {"stand-in": " stand-in", "random": " (random weights)"}.get(weights(model, scale), "")
    return f"{model['name']}{remark}"


def weights(model: Mapping[str, Any], scale: str) -> str:
    """`published`, `stand-in` or `random`; for a run that never began, from its registry entry."""
    checkpoint = models_room.CHECKPOINTS.get(scale, {}).get(model["key"])
    planned = "stand-in" if checkpoint and checkpoint.stand_in_for else "not known"
    return str(model.get("weights") or planned)


def recorded_rate(result: Result, entry: Mapping[str, Any]) -> float:
    """Learning rate of the rung that later rounds continue from, as the round recorded it, else from the spec."""
    if "learning_rate" in entry:
        return float(entry["learning_rate"])
    return float(result["spec"]["scale"]["training"]["learning_rate"][entry["source"]])


def order(model: str, method: str = "") -> tuple[int, int]:
    """Sort key by place in the registry; an empty method comes first, unknown names come last."""
    models, methods = list(models_room.MODELS), list(methods_room.METHODS["paper"])
    return (
        models.index(model) if model in models else len(models),
        -1 if not method else methods.index(method) if method in methods else len(methods),
    )


def _grid(scale: str, cells: Collection[str] | None) -> Iterator[str]:
    if scale not in scales.SCALES:
        return
    for cell in registry.cells(scale):
        if cells is None or cell.id in cells:
            yield from (f"{cell.id}-seed{seed}" for seed in cell.scale.seeds)


def _rungs(results: list[Result]) -> tuple[Rung, ...]:
    """Each rung once, even if several results hold it; a done copy wins."""
    rungs: dict[Any, Rung] = {}
    for rung in _each_rung(results):
        key = rung.data.get("fingerprint") or (rung.start, rung.source, rung.seed, rung.learning_rate)
        old = rungs.get(key)
        if old is None:
            rungs[key] = rung
            continue
        best = rung if rung.state == "done" and old.state != "done" else old
        cells = tuple(dict.fromkeys([*old.cells, *rung.cells]))
        rungs[key] = replace(best, cells=cells, recorded=old.recorded or rung.recorded)
    return tuple(
        sorted(
            rungs.values(),
            key=lambda r: (
                *order(r.start.model, r.start.method),
                len(r.start.before),
                r.start.before[::-1],
                source_place(r.source),
                r.learning_rate,
                r.seed,
            ),
        )
    )


def _each_rung(results: list[Result]) -> Iterator[Rung]:
    for result in results:
        sources: tuple[str, ...] = ()
        for entry in result.get("rounds", []):
            start = Start(result["model"]["key"], result["method"]["key"], sources)
            for data in entry.get("rungs", []):
                rate = float(data["learning_rate"])
                recorded = rate == recorded_rate(result, entry)
                yield Rung(
                    start,
                    entry["source"],
                    int(result["seed"]),
                    rate,
                    data["state"],
                    (result["cell"],),
                    recorded,
                    data,
                    entry.get("start") or {},
                )
            sources = (*sources, entry["source"])


def _beside(result: Result) -> str:
    """Part of a row's key after its method's key."""
    row = str(result["method"]["key"])
    return row.removeprefix(result["spec"].get("method", {}).get("key", row))


def _policies(results: list[Result]) -> tuple[MeasuredPolicy, ...]:
    policies: dict[Any, MeasuredPolicy] = {}
    for result in results:
        key, seed = result["model"]["key"], int(result["seed"])
        measured = [MeasuredPolicy(key, _beside(result), (), seed, result.get("start") or {})]
        sources: tuple[str, ...] = ()
        for entry in result.get("rounds", []):
            if sources:
                measured.append(MeasuredPolicy(key, result["method"]["key"], sources, seed, entry.get("start") or {}))
            sources = (*sources, entry["source"])
            for rung in entry.get("rungs", []):
                if is_done(rung) and rung["learning_rate"] == recorded_rate(result, entry):
                    measured.append(MeasuredPolicy(key, result["method"]["key"], sources, seed, rung["metrics"]))
        for policy in measured:
            if policy.metrics.get(SPLIT):
                policies.setdefault((policy.key, seed), policy)
    return tuple(
        sorted(policies.values(), key=lambda p: (*order(p.model, p.method), len(p.sources), p.sources[::-1], p.seed))
    )
