"""On-policy against off-policy data from one starting policy, in three views, with the boundary score before it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stagealign.base.identity import stream
from stagealign.report.read.book import Book
from stagealign.report.read.rungs import GAIN_KINDS, SPLIT, Rung, Start, value
from stagealign.report.read.sides import COMPARED, ordered
from stagealign.stats import effectiveness, statistics
from stagealign.stats.statistics import Metric

UNDECIDED = "undecided"
NOT_RUN = "not run"
BOUNDARY = 0.5


@dataclass(frozen=True)
class Side:
    """One source at one learning rate, over seeds."""

    source: str
    learning_rate: float
    gain: Metric
    clean_gain: Metric
    kl: float | None
    """Nats a completion, mean over seeds."""
    degenerate: float | None
    """Percent of completions, mean over seeds."""


@dataclass(frozen=True)
class View:
    """One way to compare on-policy with off-policy data."""

    name: str
    """`equal` (learning rate), `best` (of each source) or `matched KL`."""
    ratio: Metric
    """As from `statistics.effectiveness_ratio`."""
    clean: Metric | None
    """The same for the clean gain."""
    learning_rate: float | None = None
    """Of the view `equal`."""
    kl: float | None = None
    """Of the view `matched KL`, nats a completion."""

    @property
    def better(self) -> str:
        """Source with the larger gain, or `undecided` if the interval of the difference includes 0."""
        return verdict(self.ratio)

    @property
    def clean_better(self) -> str:
        """The same by clean gain."""
        return verdict(self.clean) if self.clean else NOT_RUN


@dataclass(frozen=True)
class Contrast:
    """Results of the next round from one starting policy, with every source."""

    start: Start
    boundary: Metric | None
    """Score before the round: mean over seeds with interval."""
    sides: tuple[Side, ...]
    """Done rungs by source and learning rate, over seeds."""
    best: dict[str, Side]
    """By source: its rung with the best clean gain on validation prompts."""
    views: tuple[View, ...]
    method: str = ""
    """Method if claims count this contrast; empty for another gold reward, or if another sampler's row counts."""

    def view(self, name: str) -> View | None:
        """The view called `name`; None if a rung for it is missing."""
        return next((view for view in self.views if view.name == name), None)

    @property
    def named(self) -> str:
        """Source that the boundary score names, or `not run` without a score."""
        return NOT_RUN if self.boundary is None else ("off" if self.boundary["value"] < BOUNDARY else "on")

    @property
    def sure(self) -> bool:
        """Whether the boundary score's interval excludes 0.5."""
        low, high = (self.boundary["interval"] if self.boundary else None) or (BOUNDARY, BOUNDARY)
        return not low <= BOUNDARY <= high

    @property
    def better(self) -> str:
        """Better source, each at its best rung; `not run` if one is missing."""
        view = self.view("best")
        return view.better if view else NOT_RUN

    @property
    def named_it(self) -> str:
        """`yes` or `no`: whether the score named the better source; else `undecided` or `not run`."""
        if NOT_RUN in (self.better, self.named):
            return NOT_RUN
        return UNDECIDED if self.better == UNDECIDED else ("yes" if self.named == self.better else "no")


def counted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Contrasts that claims count: each starting policy once, by any sampler."""
    return [contrast for contrast in contrasts if contrast.method]


def contrasts(book: Book) -> list[Contrast]:
    """One contrast for each starting policy, in the registry's order; `method` marks those that claims count."""
    by_start = {contrast.start: contrast for contrast in (_contrast(book, start) for start in book.starts)}
    for method in book.methods:
        rows = book.rows_of(method)
        for model, before in {(start.model, start.before) for start in by_start}:
            known = [by_start[start] for row in rows if (start := Start(model, row, before)) in by_start]
            whole = [contrast for contrast in known if NOT_RUN not in (contrast.better, contrast.named)]
            for contrast in (whole or known)[:1]:
                by_start[contrast.start] = replace(contrast, method=method)
    return list(by_start.values())


def boundary(measurements: Iterable[Any]) -> Metric | None:
    """Boundary score over the seeds' policy metrics; None if no seed measured it."""
    scores = [metrics[SPLIT]["boundary"] for metrics in measurements if metrics.get(SPLIT, {}).get("boundary")]
    if not scores:
        return None
    return statistics.pooled_score([value(s["score"]) or 0.0 for s in scores], [_interval(s) for s in scores])


def verdict(ratio: Metric) -> str:
    """`on`, `off` or `undecided`, from the interval of the difference of paired gains."""
    low, high = ratio["difference"]["interval"]
    return "on" if low > 0 else "off" if high < 0 else UNDECIDED


def _interval(score: Any) -> list[float] | None:
    nested = score["score"].get("interval") if isinstance(score["score"], dict) else None
    bounds: list[float] | None = score.get("interval") or nested
    return bounds


def _contrast(book: Book, start: Start) -> Contrast:
    sources = ordered([*COMPARED, *book.sources(start)])
    ladders = {source: _by_rate(book.ladder(start, source)) for source in sources}
    sides = [_side(start, source, rate, rungs) for source, rates in ladders.items() for rate, rungs in rates.items()]
    best = {source: _best(rates) for source, rates in ladders.items() if rates}
    views = []
    off, on = ladders["off"], ladders["on"]
    if off and on:
        for rate in sorted(off.keys() & on.keys()):
            views += _view(start, "equal", on[rate], off[rate], rate)
        views += _view(start, "best", on[best["on"]], off[best["off"]])
        views += _matched(start, on, off)
    return Contrast(
        start,
        boundary(policy.metrics for policy in book.policy(start)),
        tuple(sides),
        {side.source: side for side in sides if best[side.source] == side.learning_rate},
        tuple(views),
    )


Ladder = dict[float, dict[int, Rung]]


def _by_rate(rungs: list[Rung]) -> Ladder:
    """Learning rate -> seed -> rung."""
    ladder: Ladder = {}
    for rung in rungs:
        ladder.setdefault(rung.learning_rate, {})[rung.seed] = rung
    return ladder


def _best(rates: Ladder) -> float:
    """Learning rate with the best clean gain on validation prompts; without those, the recorded one."""
    whole = max(len(rungs) for rungs in rates.values())
    comparable = {rate: rungs for rate, rungs in rates.items() if len(rungs) == whole}
    scores = {rate: [rung.validation for rung in rungs.values()] for rate, rungs in comparable.items()}
    if any(score is None for seeds in scores.values() for score in seeds):
        return next(
            (rate for rate, rungs in comparable.items() if any(r.recorded for r in rungs.values())), min(comparable)
        )
    return effectiveness.best_rung({rate: [score or 0.0 for score in seeds] for rate, seeds in scores.items()})


def _side(start: Start, source: str, rate: float, rungs: dict[int, Rung]) -> Side:
    gains = {
        kind: statistics.mean_over_seeds(
            [rung.gains(kind) for rung in rungs.values()],
            unit(rungs),
            _rng(start, source, f"{rate:g}", kind),
        )
        for kind in GAIN_KINDS
    }
    kl, degenerate = (_mean(rung.metric(name) for rung in rungs.values()) for name in ("kl", "degenerate"))
    return Side(source, rate, gains["gain"], gains["clean_gain"], kl, degenerate)


def unit(rungs: dict[int, Rung]) -> str:
    """Unit of the rungs' gains."""
    metric = rung_metric(next(iter(rungs.values())), "gain")
    return metric.get("unit", "reward") if metric else "reward"


def rung_metric(rung: Rung, kind: str) -> Metric | None:
    """Gain of one rung on test prompts, as its run recorded it."""
    gain: Metric | None = (rung.data.get(kind) or {}).get(SPLIT)
    return gain


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _view(start: Start, name: str, on: dict[int, Rung], off: dict[int, Rung], rate: float | None = None) -> list[View]:
    """The view over the seeds that both sources have; empty if they share no seed."""
    seeds = sorted(on.keys() & off.keys())
    if not seeds:
        return []
    ratios = {
        kind: effectiveness.effectiveness_ratio(
            [on[seed].gains(kind) for seed in seeds],
            [off[seed].gains(kind) for seed in seeds],
            _rng(start, name, str(rate), kind),
            unit(on),
        )
        for kind in GAIN_KINDS
    }
    return [View(name, ratios["gain"], ratios["clean_gain"], rate)]


def _matched(start: Start, on: Ladder, off: Ladder) -> list[View]:
    """Both sources at the largest KL that both reach; empty without KL or a shared seed."""
    ladders = {"on": _with_kl(on), "off": _with_kl(off)}
    seeds = sorted(ladders["on"].keys() & ladders["off"].keys())
    if not seeds:
        return []

    def points(side: str, kind: str) -> list[statistics.Ladder]:
        return [[(rung.metric("kl") or 0.0, rung.gains(kind)) for rung in ladders[side][seed]] for seed in seeds]

    if effectiveness.matched_kl(points("on", "gain"), points("off", "gain")) <= 0:
        return []
    ratios = {
        kind: effectiveness.ratio_at_matched_kl(
            points("on", kind), points("off", kind), _rng(start, "kl", kind), unit(next(iter(on.values())))
        )
        for kind in GAIN_KINDS
    }
    return [View("matched KL", ratios["gain"], ratios["clean_gain"], kl=ratios["gain"]["kl"])]


def _with_kl(rates: Ladder) -> dict[int, list[Rung]]:
    """Seed -> its rungs, for seeds whose rungs all have a KL."""
    seeds: dict[int, list[Rung]] = {}
    for rungs in rates.values():
        for seed, rung in rungs.items():
            seeds.setdefault(seed, []).append(rung)
    return {seed: rungs for seed, rungs in seeds.items() if all(rung.metric("kl") is not None for rung in rungs)}


def _rng(start: Start, *names: str) -> np.random.Generator:
    """Generator that depends on the question alone, so that other results do not change an interval."""
    return np.random.default_rng(stream(0, "report", start.model, start.method, start.name, *names))
