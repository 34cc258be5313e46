"""Agreement of diversity measures, and off-policy sources compared by diversity and quality."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from stagealign.base.identity import stream
from stagealign.grid import sources
from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import UNDECIDED, unit, verdict
from stagealign.report.read.data_sets import JUDGED, NAMES, DataSet, mean_over
from stagealign.report.read.rungs import Start
from stagealign.report.read.sides import source_place
from stagealign.report.sections.rows import Table, TableRow, policy_name
from stagealign.report.sections.words import DASH, count, gain, rate, signed
from stagealign.stats import effectiveness
from stagealign.stats.diversity import MORE, Concordance, concordance, larger


def orders(measured: Sequence[DataSet]) -> Table:
    """Table of the more diverse of two sources from one start, by each measure; its last row is about quality."""
    couples = list(dict.fromkeys((a.source, b.source) for a, b in _comparisons(measured)))
    rows = []
    for name, label in {**NAMES, "quality": "quality under the oracle"}.items():
        compared = agreement_words(measured, (name,))
        cells = [label]
        for couple in couples:
            signs = [sign for (a, b, _), (sign,) in compared.items() if (a[0], b[0]) == couple]
            first, second, neither = (signs.count(sign) for sign in (1, -1, 0))
            cells.append(f"{couple[0]} {first}, {couple[1]} {second}, cannot tell {neither}" if signs else DASH)
        rows.append(TableRow(tuple(cells)))
    return Table(
        "orders",
        "Which source is more diverse, by each measure",
        "Sources of one round for one starting policy and seed: how often each is the more diverse (last row: the "
        "better) by more than its 95% error over prompts. Sets that share their texts count once; under surprise they "
        "count once a policy.",
        ("Measure", *(f"{a} or {b}" for a, b in couples)),
        tuple(rows) if couples else (),
    )


def agreement(measured: Sequence[DataSet]) -> Table:
    """Table of each two diversity measures: agreement over sources, and over the prompts of one set."""
    rows = []
    for names, counts, rhos in agreements(measured):
        spread = f"{signed(median(rhos))} [{signed(min(rhos))}, {signed(max(rhos))}]" if rhos else DASH
        cells = (
            both_names(names),
            str(counts["same"]),
            str(counts["opposite"]),
            str(counts["undecided"]),
            signed(counts["tau"]),
            spread,
            str(len(rhos)),
        )
        rows.append(TableRow(cells))
    return Table(
        "agreement",
        "Do the measures of diversity agree?",
        "Two sources of one round and seed, ordered by both measures: alike, opposite, or one of the measures cannot "
        "tell; tau: alike minus opposite over both. Last: Spearman rank correlation over the prompts of one set, "
        "median and range over sets. All measures count more diversity upward.",
        ("Measures", "Same order", "Opposite", "Cannot tell", "Kendall's tau", "Over prompts", "Sets"),
        tuple(rows) if any(cell != DASH for row in rows for cell in row.cells[-3:-1]) else (),
    )


DataSetPair = tuple[DataSet, DataSet]


def _comparisons(measured: Sequence[DataSet]) -> list[DataSetPair]:
    """Every two data sets of one start and seed, in the grid's order of sources."""
    ranked = sorted(measured, key=lambda data_set: source_place(data_set.source))
    return [(a, b) for a, b in combinations(ranked, 2) if (a.start, a.seed) == (b.start, b.seed)]


def agreement_words(measured: Sequence[DataSet], names: Sequence[str]) -> dict[Any, tuple[int, ...]]:
    """Comparison -> sign of each measure: 1 if the first source has more, -1 if the second has, 0 if undecided.

    A comparison without a value for one of the measures is left out. Two sets of texts make one comparison, or one for
    each policy if a measure depends on the policy.
    """
    signs_of = {}
    for a, b in _comparisons(measured):
        larger_by = [larger(a.metric(name), b.metric(name)) for name in names]
        if None not in larger_by:
            judge = a.start if JUDGED.intersection(names) else None
            signs = (sign * MORE.get(name, 1) for sign, name in zip(larger_by, names, strict=True) if sign is not None)
            signs_of[(a.texts, b.texts, judge)] = tuple(signs)
    return signs_of


def agreements(measured: Sequence[DataSet]) -> Sequence[tuple[tuple[str, str], Concordance, list[float]]]:
    """Each two measures with their concordance over sources and their rank correlation in each set."""
    rows = []
    for names in combinations(NAMES, 2):
        rhos = {}
        for data_set in measured:
            rho = ((data_set.data or {}).get("agreement") or {}).get(", ".join(names), {}).get("value")
            if rho is not None:
                rhos[(data_set.texts, data_set.start if JUDGED.intersection(names) else None)] = float(rho)
        signs = [(ours, theirs) for ours, theirs in agreement_words(measured, names).values()]
        rows.append((names, concordance(signs), list(rhos.values())))
    return rows


def good_or_diverse(book: Book, measured: Sequence[DataSet]) -> Table:
    """Table of static candidates against another model's: both are off-policy and differ in diversity and quality."""
    others = [key for key, source_spec in sources.SOURCES.items() if source_spec.sampled_from]
    rows = [
        row for start in book.starts for source in others for row in _contrast(book, start, source, measured)
    ]  # fmt: skip
    return Table(
        "diverse",
        "Diverse or good: two sources that are both off-policy",
        "Another model's samples against the static candidates of the same prompts, at equal learning rate: gain in "
        "gold reward with the 95% interval of the difference of paired gains. Quality: percent of comparisons with the "
        "static candidates won under the oracle (50 for those themselves). Distance: MiniLM, among the candidates of a "
        "prompt.",
        (
            "Starting policy",
            "Source",
            "Learning rate",
            "Quality",
            "Distance: static / source",
            "Gain, static",
            "Gain, source",
            "Source minus static",
            "Better",
        ),
        tuple(rows),
    )


def _contrast(book: Book, start: Start, source: str, measured: Sequence[DataSet]) -> Iterator[TableRow]:
    """One row for each shared learning rate, over the shared seeds."""
    rungs = {
        key: {(rung.learning_rate, rung.seed): rung for rung in book.ladder(start, key)} for key in ("off", source)
    }
    for learning_rate in sorted({key[0] for key in rungs["off"].keys() & rungs[source].keys()}):
        seeds = [
            seed for given, seed in sorted(rungs[source]) if given == learning_rate and (given, seed) in rungs["off"]
        ]
        theirs, ours = ([rungs[key][learning_rate, seed] for seed in seeds] for key in (source, "off"))
        rng = np.random.default_rng(stream(0, "report", "diverse", *start.before, start.model, start.method, source))
        ratio = effectiveness.effectiveness_ratio(
            [rung.gains("gain") for rung in theirs],
            [rung.gains("gain") for rung in ours],
            rng,
            unit(dict(zip(seeds, ours, strict=True))),
        )
        better = {"on": source, "off": "static"}.get(verdict(ratio), UNDECIDED)
        here = replace(start, method=start.method if start.before else "")
        seen = {
            key: [
                data_set
                for data_set in measured
                if (data_set.start, data_set.source) == (here, key) and data_set.seed in seeds
            ]
            for key in rungs
        }
        yield TableRow(
            (
                policy_name(book, start),
                source,
                f"{rate(learning_rate)} ({count(len(seeds), 'seed')})",
                mean_over(seen[source], "quality", 0),
                f"{mean_over(seen['off'], 'embedding')} / {mean_over(seen[source], 'embedding')}",
                gain(ratio["off"]),
                gain(ratio["on"]),
                gain(ratio["difference"]),
                better,
            )
        )


def both_names(names: tuple[str, str]) -> str:
    """`distinct-2 and self-BLEU`."""
    return f"{NAMES[names[0]]} and {NAMES[names[1]]}"
