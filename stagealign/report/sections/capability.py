"""Capability of policies before and after a round: whether a gain came with forgetting."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from stagealign.base.identity import stream
from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import unit
from stagealign.report.read.rungs import Start
from stagealign.report.read.sides import source_place
from stagealign.report.read.verdicts import ALPHA, holm, normal
from stagealign.report.sections.findings import ReportFinding
from stagealign.report.sections.rows import Table, TableRow, policy_name
from stagealign.report.sections.words import DASH, NOT_MEASURED, count, gain, listing, plain, signed
from stagealign.stats import statistics
from stagealign.stats.statistics import Metric

Ends = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Capability entries of the policies that a round starts from and ends with."""
DIGITS = {"percent": 1, "bits a byte": 3}
NAMES = {
    "acc": "accuracy",
    "acc_norm": "accuracy",
    "exact_match": "accuracy",
    "margin": "margin of the right answer",
    "bits_per_byte": "text",
}


@dataclass(frozen=True)
class CapabilityChange:
    """One capability measure before and after a round, over seeds."""

    name: str
    """`<task> <metric>`."""
    before: float
    after: float
    change: Metric
    """After minus before, paired by item, as `statistics.mean_over_seeds` returns it."""
    better: str
    """Direction of an improvement: `higher` or `lower`."""

    @property
    def toward(self) -> float:
        """The change with the sign that makes a loss negative."""
        value = float(self.change["value"])
        return -value if self.better == "lower" else value

    @property
    def p(self) -> float:
        """Two-sided p value against no change; 1 if no item changed."""
        error = float(self.change["standard_error"])
        return normal(self.toward, error, None, "").p if error > 0 else 1.0

    @property
    def unit(self) -> str:
        return str(self.change["unit"])

    @property
    def words(self) -> str:
        """`piqa accuracy, percent`."""
        return f"{label(self.name)}, {self.unit}"


@dataclass(frozen=True)
class CapabilityRound:
    """One round from one start with one source, at the recorded learning rate."""

    start: Start
    source: str
    seeds: tuple[int, ...]
    """Seeds whose runs measured both ends."""
    changes: tuple[CapabilityChange, ...] = field(repr=False)
    gain: Metric | None = field(repr=False)
    """Gain in gold reward on test prompts, over those seeds."""

    @property
    def gained(self) -> bool:
        """Whether the gain's 95% interval lies above 0."""
        return bool(self.gain and self.gain["interval"][0] > 0)


def label(name: str) -> str:
    """`piqa accuracy` for `piqa acc`; a metric without an entry in `NAMES` keeps its name."""
    task, _, metric = name.rpartition(" ")
    return f"{task} {NAMES.get(metric, metric)}"


def rounds(book: Book, model: str | None = None, method: str | None = None) -> list[CapabilityRound]:
    """Distinct rounds of all runs in the report's order, restricted to one model or method if given."""
    ends: dict[tuple[Start, str], dict[int, Ends]] = {}
    for result in book.results:
        if model not in (None, result["model"]["key"]) or method not in (None, result["method"]["key"]):
            continue
        measured: Mapping[str, Any] = result.get("capability") or {}
        before: tuple[str, ...] = ()
        for number, entry in enumerate(result.get("rounds", [])):
            start = Start(result["model"]["key"], result["method"]["key"], before)
            before = (*before, entry["source"])
            by_seed = ends.setdefault((start, entry["source"]), {})
            names = (f"round {number}" if number else "start", f"round {number + 1}")
            if all(name in measured for name in names):
                by_seed.setdefault(int(result["seed"]), (measured[names[0]], measured[names[1]]))
    starts = book.starts
    ranked = sorted(ends, key=lambda key: (_place(starts, key[0]), source_place(key[1])))
    return [_round(book, start, source, ends[start, source]) for start, source in ranked]


def _place(starts: Sequence[Start], start: Start) -> int:
    """Place of a start; an unknown one comes last."""
    return starts.index(start) if start in starts else len(starts)


def _round(book: Book, start: Start, source: str, ends: Mapping[int, Ends]) -> CapabilityRound:
    seeds = tuple(sorted(ends))
    pairs = [ends[seed] for seed in seeds]
    names = [name for name in pairs[0][0]["metrics"] if all(_paired(name, *pair) for pair in pairs)] if pairs else []
    rungs = {rung.seed: rung for rung in book.ladder(start, source) if rung.recorded}
    tables = [rungs[seed].gains("gain") for seed in seeds if seed in rungs]
    here = (start.model, start.method, *start.before, source)
    gained = statistics.mean_over_seeds(tables, unit(rungs), _chance(*here, "gain")) if tables else None
    changes = tuple(_change(name, pairs, _chance(*here, name)) for name in names)
    return CapabilityRound(start, source, seeds, changes, gained)


def _chance(*names: str) -> np.random.Generator:
    return np.random.default_rng(stream(0, "report", "capability", *names))


def _paired(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether both ends were measured on the same items, which may differ between versions."""
    old, new = (end["items"].get(name, {}) for end in (before, after))
    return bool(old) and old.keys() == new.keys()


def _change(name: str, pairs: Sequence[Ends], rng: np.random.Generator) -> CapabilityChange:
    metric = pairs[0][0]["metrics"][name]
    differences = [statistics.paired_differences(new["items"][name], old["items"][name]) for old, new in pairs]
    before, after = (fmean(float(pair[end]["metrics"][name]["value"]) for pair in pairs) for end in (0, 1))
    change = statistics.mean_over_seeds(differences, metric["unit"], rng)
    return CapabilityChange(name, before, after, change, metric["better"])


def table(book: Book, model: str | None = None, method: str | None = None) -> Table:
    """Table with one row for each round, of all models and methods or of one; empty if nothing was measured."""
    every = rounds(book, model, method)
    known = {change.name: change for measured in every for change in measured.changes}
    return Table(
        "capability",
        "Capability before and after",
        "Measured by lm-eval on the policy that a round starts from and on the one it ends with, at the recorded "
        "learning rate: before → after, and the change with its 95% interval, paired by item, over items and seeds. "
        "Accuracy in percent. Margin: how much likelier the right answer is than the wrong one, in bits a byte. Text: "
        "bits a byte of general text that no round is trained on, less is better. Worse: measures that got worse by an "
        "interval that excludes 0, as chance alone does for one measure in 40. An interval of width 0: no item "
        "changed, which is likely with few items. A dash: the two policies were not measured on the same items.",
        (
            "Starting policy",
            "Source",
            "Seeds",
            "Gain",
            *(known[name].words for name in known),
            "Worse",
        ),
        tuple(_row(book, measured, list(known)) for measured in every) if known else (),
    )


def _row(book: Book, measured: CapabilityRound, names: Sequence[str]) -> TableRow:
    first = (policy_name(book, measured.start), measured.source)
    if not measured.seeds:
        return TableRow((*first, NOT_MEASURED, *[DASH] * (len(names) + 2)), NOT_MEASURED)
    changes = {change.name: change for change in measured.changes}
    cells = [_cell(changes[name]) if name in changes else DASH for name in names]
    worse = [label(change.name) for change in measured.changes if _seen(change) < 0]
    return TableRow((*first, ", ".join(map(str, measured.seeds)), gain(measured.gain), *cells, listing(worse)))


def _cell(change: CapabilityChange) -> str:
    """`67.5 → 66.0` and, on a second line, the change with its interval."""
    digits = DIGITS.get(change.unit, 2)
    bounds = ", ".join(signed(bound, digits) for bound in change.change["interval"])
    return (
        f"{plain(change.before, digits)} → {plain(change.after, digits)}\n"
        f"{signed(change.change['value'], digits)} [{bounds}]"
    )


def _seen(change: CapabilityChange) -> int:
    """Direction of a change: -1 worse, 1 better, 0 if its interval includes 0."""
    low, high = change.change["interval"]
    sign = (low > 0) - (high < 0)
    return -sign if change.better == "lower" else sign


def statements(book: Book) -> Iterator[ReportFinding]:
    """Finding on whether gains came with a loss of capability, or that capability is not measured."""
    every = rounds(book)
    if book.plumbing or not every:
        return
    measured = [measured_round for measured_round in every if measured_round.seeds]
    if not measured:
        yield ReportFinding(
            "missing", "Capability before and after a round is not measured: `stagealign run --capability`."
        )
        return
    absent = len(every) - len(measured)
    gained = [measured_round for measured_round in measured if measured_round.gained]
    text = (
        f"Was a gain bought by forgetting? {count(len(measured), 'round')} measured before and after"
        f"{f' ({absent} not)' if absent else ''}, {len(gained)} with a gain above 0."
    )
    cases = [(measured_round, change) for measured_round in gained for change in measured_round.changes]
    adjusted = holm([change.p for _, change in cases])
    lost = False
    for name in dict.fromkeys(change.name for _, change in cases):
        places = [place for place, (_, change) in enumerate(cases) if change.name == name]
        worse = [place for place in places if _seen(cases[place][1]) < 0]
        sure = [place for place in worse if adjusted[place] < ALPHA]
        lost = lost or bool(sure)
        text += f" {_said(book, [cases[place] for place in places], len(worse), len(sure))}"
    yield ReportFinding("found" if lost else "unsure", text)


def _said(book: Book, here: Sequence[tuple[CapabilityRound, CapabilityChange]], worse: int, sure: int) -> str:
    """Summary of one measure over the rounds that gained: losses, mean and worst change, detectable change."""
    worst_round, most = min(here, key=lambda pair: pair[1].toward)
    digits = DIGITS.get(most.unit, 2)
    errors = [float(change.change["standard_error"]) for _, change in here if change.change["standard_error"] > 0]
    limit = plain(statistics.smallest_visible(fmean(errors)), digits) if errors else None
    better = sum(_seen(change) > 0 for _, change in here)
    mean = fmean(float(change.change["value"]) for _, change in here)
    return (
        f"By {label(most.name)}: worse in {worse} ({sure} after correction for many), better in {better}, mean change "
        f"{signed(mean, digits)} {most.unit}, at worst {signed(most.change['value'], digits)} "
        f"({policy_name(book, worst_round.start)}, {worst_round.source})"
        f"{f'; a change of {limit} could have been seen' if limit else ''}."
    )
