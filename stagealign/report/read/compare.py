"""Differences between two results folders, or between two cells of one folder, tested against noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagealign.base.errors import BadData
from stagealign.base.identity import stream
from stagealign.report.read.rungs import SPLIT, after, value
from stagealign.report.read.verdicts import ALPHA, holm, normal
from stagealign.stats.statistics import Metric, mean_over_seeds, paired_differences, pooled_score
from stagealign.store.result_types import Result, is_done
from stagealign.store.results import read_results

PLACES = {"gold reward": 0, "clean gold reward": 1}
"""Quantity -> place in a prompt's `[gold, clean gold]`."""
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """One quantity of one policy on both sides of a comparison."""

    policy: str
    quantity: str
    unit: str
    before: float
    after: float
    interval: tuple[float, float] | None
    """95%, of `after - before`; None if both sides are equal to the last digit."""
    p: float
    """Two-sided, Holm-corrected over all compared quantities."""

    @property
    def more_than_noise(self) -> bool:
        """Whether the difference is significant at 5%."""
        return self.p < ALPHA


@dataclass(frozen=True)
class ResultsComparison:
    """Quantities on both sides, and policies on one side only."""

    moved: tuple[Moved, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether anything moved by more than noise, or is missing on the second side."""
        return bool(self.only_first) or any(change.more_than_noise for change in self.moved)


def compare_folders(first: Path, second: Path, scale: str) -> ResultsComparison:
    """Comparison of the runs of one scale in two folders, policy by policy over the shared seeds.

    Raises BadData if a result is damaged or the folders share no policy.
    """
    return _compare(_policies(_done(first, scale)), _policies(_done(second, scale)), f"{first} and {second}")


def compare_cells(folder: Path, scale: str, first: str, second: str) -> ResultsComparison:
    """Comparison of the policies that two cells end with, over the shared seeds.

    Raises BadData if either has no finished run, or they share no seed.
    """
    ends: list[dict[str, dict[int, Metrics]]] = []
    for cell in (first, second):
        runs = [run for run in _done(folder, scale) if run["cell"] == cell]
        if not runs:
            raise BadData(
                f"{folder / scale}: no finished run of {cell}; run it: `stagealign run --scale {scale} -k {cell}`"
            )
        ends.append({f"{first} -> {second}": {run["seed"]: _last(run) for run in runs}})
    return _compare(ends[0], ends[1], f"{first} and {second}")


def _done(folder: Path, scale: str) -> list[Result]:
    done = []
    for _, result in read_results(folder, scale):
        if isinstance(result, BadData):
            raise result
        if result["state"] == "done":
            done.append(result)
    if not done:
        raise BadData(f"{folder / scale}: no finished results; run some: `stagealign run --scale {scale}`")
    return done


def _last(run: Result) -> Metrics:
    """Metrics of the policy that the run ends with, at the recorded learning rate."""
    entry = run["rounds"][-1]
    rungs = [rung for rung in entry["rungs"] if is_done(rung)]
    kept = next((r for r in rungs if r["learning_rate"] == entry["learning_rate"]), rungs[-1])
    metrics: Metrics = kept["metrics"]
    return metrics


def _policies(runs: Sequence[Result]) -> dict[str, dict[int, Metrics]]:
    """Name -> seed -> metrics of every policy that the runs measured, each once."""
    policies: dict[str, dict[int, Metrics]] = {}
    for run in runs:
        head, sources = f"{run['model']['key']}-{run['method']['key']}", []
        policies.setdefault(f"{run['model']['key']} start", {})[run["seed"]] = run["start"]
        for entry in run["rounds"]:
            sources.append(entry["source"])
            for rung in entry["rungs"]:
                if is_done(rung):
                    name = f"{head} {after(sources)}, lr {rung['learning_rate']:g}"
                    policies.setdefault(name, {})[run["seed"]] = rung["metrics"]
    return policies


def _compare(
    first: dict[str, dict[int, Metrics]], second: dict[str, dict[int, Metrics]], what: str
) -> ResultsComparison:
    """Comparison of all policies on both sides with a shared seed, Holm-corrected over all quantities."""
    moved: list[Moved] = []
    for name in [name for name in first if name in second]:
        seeds = sorted(first[name].keys() & second[name].keys())
        if seeds:
            moved += _quantities(name, [first[name][s] for s in seeds], [second[name][s] for s in seeds])
    if not moved:
        raise BadData(f"{what}: no policy with a seed in common; nothing can be compared")
    adjusted = holm([change.p for change in moved])
    corrected = tuple(Moved(**{**vars(change), "p": p}) for change, p in zip(moved, adjusted, strict=True))
    runs = [{(name, seed) for name, seeds in side.items() for seed in seeds} for side in (first, second)]
    lonely = [tuple(f"{name}, seed {seed}" for name, seed in sorted(a - b)) for a, b in (runs, runs[::-1])]
    return ResultsComparison(corrected, *lonely)


def _quantities(name: str, first: list[Metrics], second: list[Metrics]) -> Iterator[Moved]:
    """Gold rewards paired by prompt hash, and the boundary score; p is uncorrected."""
    for quantity, place in PLACES.items():
        gains = [
            paired_differences(_column(new, place), _column(old, place)) for old, new in zip(first, second, strict=True)
        ]
        rng = np.random.default_rng(stream(0, "compare", name, quantity))
        metric = mean_over_seeds(gains, first[0][SPLIT]["gold"]["unit"], rng)
        sides = [float(np.mean([np.mean(list(_column(m, place).values())) for m in side])) for side in (first, second)]
        yield _moved(name, quantity, metric["unit"], sides, metric["standard_error"], metric["interval"])
    if all(m[SPLIT].get("boundary") for m in (*first, *second)):
        before, now = (_score(side) for side in (first, second))
        change = now["value"] - before["value"]
        error = float(np.hypot(before["standard_error"], now["standard_error"]))
        same = change == 0.0
        interval = [change - 1.96 * error, change + 1.96 * error]
        yield _moved(name, "boundary score", "share", [before["value"], now["value"]], 0.0 if same else error, interval)


def _moved(name: str, quantity: str, unit: str, sides: list[float], error: float, interval: Sequence[float]) -> Moved:
    before, now = sides
    if error == 0:  # no spread between prompts: p is 1 if nothing moved, 0 if all prompts moved alike
        return Moved(name, quantity, unit, before, now, None, 1.0 if before == now else 0.0)
    p = normal(now - before, error, None, "").p
    return Moved(name, quantity, unit, before, now, (interval[0], interval[1]), p)


def _column(metrics: Metrics, place: int) -> dict[str, float]:
    return {key: pair[place] for key, pair in metrics[SPLIT]["prompts"].items()}


def _score(side: list[Metrics]) -> Metric:
    scores = [m[SPLIT]["boundary"] for m in side]
    return pooled_score([value(score["score"]) or 0.0 for score in scores], [score["interval"] for score in scores])
