"""Candidates and pairs of each round, as results describe them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from stagealign.report.read.book import Book, order
from stagealign.report.read.rungs import Start
from stagealign.report.read.sides import on_policy, source_place
from stagealign.report.sections.words import DASH, plain

NAMES = {
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "embedding": "MiniLM distance",
    "surprise": "surprise",
    "surprise_gap": "surprise gap",
}
JUDGED = {"surprise", "surprise_gap"}
"""Measures under the policy that the round starts from; the others depend on the texts alone."""
ENOUGH = 6
"""Fewest comparisons, all alike, that a sign test at 95% accepts."""


@dataclass(frozen=True)
class DataSet:
    """Candidates and pairs of one round under the policy that it starts from, with one seed."""

    start: Start
    """With an empty method before round 1, which all methods share."""
    source: str
    seed: int
    data: Mapping[str, Any] | None = field(repr=False)
    """Entry of the result; None in results older than this measurement."""

    @property
    def texts(self) -> tuple[Any, ...]:
        """Key of the texts: fixed candidates serve every start of a round, samples of the policy one start."""
        return self.source, self.seed, self.start if on_policy(self.source) else self.start.round

    def metric(self, name: str) -> Mapping[str, Any]:
        """One metric; its value is None if it was not measured."""
        metric: Mapping[str, Any] = ((self.data or {}).get("metrics") or {}).get(name) or {"value": None}
        return metric


def data_sets(book: Book) -> list[DataSet]:
    """Each data set once, even if several cells share it; a measured copy wins."""
    sets: dict[Any, DataSet] = {}
    for result in book.results:
        before: tuple[str, ...] = ()
        for entry in result.get("rounds", []):
            start = Start(result["model"]["key"], result["method"]["key"] if before else "", before)
            data_set = DataSet(start, entry["source"], int(result["seed"]), entry.get("data"))
            before = (*before, entry["source"])
            key = (data_set.start, data_set.source, data_set.seed)
            if key not in sets or sets[key].data is None:
                sets[key] = data_set
    return sorted(sets.values(), key=_place)


def mean_over(group: Sequence[DataSet], name: str, digits: int = 2) -> str:
    """`0.97 ± 0.01`: mean over sets with its standard error; for several policies the range of their means."""
    metrics = _each(group, name)
    known = [metric for metric in metrics if metric["value"] is not None]
    if not known:
        reasons = [str(metric["reason"]) for metric in metrics if metric.get("reason")]
        return f"no value: {reasons[0]}" if reasons else DASH
    values = [float(metric["value"]) for metric in known]
    policies = len({data_set.start for data_set in group})
    if name in JUDGED and policies > 1:
        return f"{plain(min(values), digits)} to {plain(max(values), digits)} ({policies} policies)"
    mean = plain(fmean(values), digits)
    errors = [float(metric["standard_error"]) for metric in known if metric.get("standard_error") is not None]
    if len(errors) < len(known):
        return mean
    return f"{mean} ± {plain(math.hypot(*errors) / len(errors), digits)}"


def share_over(group: Sequence[DataSet], name: str) -> str:
    """`1.0%`: mean of a share over the sets of texts; a dash if none was measured."""
    values = [float(metric["value"]) for metric in _each(group, name) if metric["value"] is not None]
    return f"{100 * fmean(values):.1f}%" if values else DASH


def _each(group: Sequence[DataSet], name: str) -> list[Mapping[str, Any]]:
    """One metric for each set of texts, or for each policy that judges it."""
    return list(
        {
            (data_set.texts, data_set.start if name in JUDGED else None): data_set.metric(name) for data_set in group
        }.values()
    )


def _place(data_set: DataSet) -> tuple[Any, ...]:
    """Sort key: fixed sources first, then by round; on-policy ones by model, method and earlier rounds."""
    start = data_set.start
    return (
        on_policy(data_set.source),
        source_place(data_set.source),
        start.round,
        *order(start.model, start.method),
        start.before[::-1],
        data_set.seed,
    )
