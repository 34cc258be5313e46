"""What the rounds were trained on: diversity by each measure, quality, lengths; and whether the measures agree."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from stagealign import registry, statistics
from stagealign.diversity import MORE, concordance, larger
from stagealign.report.book import Book, Start, order
from stagealign.report.contrasts import UNDECIDED, unit, verdict
from stagealign.report.findings import Finding
from stagealign.report.rows import Row, Table, policy_name
from stagealign.report.words import DASH, count, gain, listing, plain, rate, signed
from stagealign.spec import stream

NAMES = {
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "embedding": "MiniLM distance",
    "surprise": "surprise",
    "surprise_gap": "surprise gap",
}
JUDGED = {"surprise", "surprise_gap"}
"""Measures that are taken under the policy that the round starts from; the others need the texts only."""
NOT_MEASURED = "not measured"
ENOUGH = 6
"""Comparisons without a contradiction from which on chance is an unlikely reason: a sign test's fewest at 95%."""


@dataclass(frozen=True)
class DataSet:
    """Candidates and pairs of one round, as seen from the policy that it starts from, with one seed."""

    start: Start
    """Its method is empty before round 1, which all methods share."""
    source: str
    seed: int
    data: Mapping[str, Any] | None = field(repr=False)
    """The result's entry; None in results of before it was measured."""

    @property
    def texts(self) -> tuple[Any, ...]:
        """The same for sets of the same texts: what is not sampled from the start serves every start of the round."""
        return self.source, self.seed, self.start if on_policy(self.source) else self.start.round

    def metric(self, name: str) -> Mapping[str, Any]:
        """One metric; without a value where it was not measured."""
        found: Mapping[str, Any] = ((self.data or {}).get("metrics") or {}).get(name) or {"value": None}
        return found


def on_policy(source: str) -> bool:
    """Whether a source's candidates belong to the policy in training; an unknown source is taken to."""
    known = registry.SOURCES.get(source)
    return known is None or known.on_policy


def data_sets(book: Book) -> list[DataSet]:
    """Each set once, however many cells share it; measured ones before others."""
    found: dict[Any, DataSet] = {}
    for result in book.results:
        before: tuple[str, ...] = ()
        for entry in result.get("rounds", []):
            start = Start(result["model"]["key"], result["method"]["key"] if before else "", before)
            one = DataSet(start, entry["source"], int(result["seed"]), entry.get("data"))
            before = (*before, entry["source"])
            key = (one.start, one.source, one.seed)
            if key not in found or found[key].data is None:
                found[key] = one
    return sorted(found.values(), key=_place)


def data_tables(book: Book) -> list[Table]:
    """The sets, who is more diverse by which measure, whether the measures agree, and what good data gained."""
    sets = data_sets(book)
    measured = [one for one in sets if one.data is not None]
    return [good_or_diverse(book, measured), orders(measured), agreement(measured), described(book, sets)]


def data_statements(book: Book) -> Iterator[Finding]:
    """Whether diversity by one measure speaks for the others, in words."""
    measured = [one for one in data_sets(book) if one.data is not None]
    if book.scale == "smoke" or not measured:
        return
    rows = _agreements(measured)
    alike = [names for names, found, _ in rows if found["same"] and not found["opposite"]]
    against = [(names, found) for names, found, _ in rows if found["opposite"]]
    silent = len(rows) - len(alike) - len(against)
    text = (
        f"Does diversity by one measure hold with others? Of {count(len(rows), 'pair')} of measures, {len(alike)} "
        f"order two sources alike wherever both can tell, {len(against)} contradict each other at least once"
    )
    words = [
        f"{_both(names)} in {found['opposite']} of {found['same'] + found['opposite']}" for names, found in against
    ]
    text += f" ({listing(words, 4)})" if words else ""
    text += f", {silent} can never both tell" if silent else ""
    compared = len(_said(measured, ("distinct_2",)))
    text += f"; {count(compared, 'comparison')} of two sources from one start."
    within = {names: median(rhos) for names, _, rhos in rows if rhos}
    if within:
        low, high = min(within, key=within.__getitem__), max(within, key=within.__getitem__)
        text += (
            f" Over the prompts of one set their rank correlation is {signed(within[low])} ({_both(low)}) to "
            f"{signed(within[high])} ({_both(high)}), medians of {count(len(measured), 'set')}."
        )
    yield Finding("found" if alike and not against and compared >= ENOUGH else "unsure", text)


def described(book: Book, sets: Sequence[DataSet]) -> Table:
    """One row for each set of texts, over seeds."""
    groups: dict[Any, list[DataSet]] = {}
    for one in sets:
        source, _, place = one.texts
        groups.setdefault((source, place), []).append(one)
    return Table(
        "data",
        "Data of each round",
        "Among the candidates of one prompt, means over prompts, ± standard error, mean of the seeds. Distinct-n: "
        "share of different n-grams (falls with length). Self-BLEU: 0 to 1, high means alike. MiniLM distance: cosine, "
        "by the published encoder, which is not the gold reward. Surprise: nats a token under the round's starting "
        "policy, mean of the pair; gap: how far the two are apart. A policy finds its own samples likely, so surprise "
        "favours other people's text. Quality: share of comparisons with the prompt's static candidates won under the "
        "oracle, 50 for those themselves. Margin in oracle points. Duplicates: prompts with equal candidates; repeats: "
        "candidates whose text another prompt has too.",
        (
            "Data",
            "Seeds",
            "Prompts",
            "Distinct-1, distinct-2",
            "Self-BLEU",
            "MiniLM distance",
            "Surprise, gap",
            "Quality, percent",
            "Words, chosen − rejected",
            "Margin",
            "Ties, duplicates, repeats",
        ),
        tuple(_row(book, group) for group in groups.values()),
        folded=True,
    )


def _row(book: Book, group: Sequence[DataSet]) -> Row:
    first, measured = group[0], [one for one in group if one.data is not None]
    names = [policy_name(book, first.start) if first.start.method else f"{book.label(first.start.model)}, start"]
    name = f"{first.source}, {names[0] if on_policy(first.source) else f'round {first.start.round}'}"
    seeds = ", ".join(map(str, sorted({one.seed for one in group})))
    if not measured:
        return Row((name, seeds, NOT_MEASURED, *[DASH] * 8), NOT_MEASURED)
    left_out = {
        reason: number for one in measured for reason, number in ((one.data or {}).get("drops") or {}).items() if number
    }
    prompts = sorted({int((one.data or {}).get("prompts", 0)) for one in measured})
    cells = (
        name,
        seeds,
        " to ".join(str(number) for number in dict.fromkeys((prompts[0], prompts[-1])))
        + "".join(f"\nleft out, {reason}: {number}" for reason, number in sorted(left_out.items())),
        f"{_mean(measured, 'distinct_1', 3)}\n{_mean(measured, 'distinct_2', 3)}",
        _mean(measured, "self_bleu", 3),
        _mean(measured, "embedding"),
        f"{_mean(measured, 'surprise')}\n{_mean(measured, 'surprise_gap')}",
        _mean(measured, "quality", 0),
        f"{_mean(measured, 'length', 1)}\n{_mean(measured, 'length_gap', 1)}",
        _mean(measured, "margin"),
        ", ".join(_share(measured, name) for name in ("ties", "duplicates", "repeats")),
    )
    return Row(cells)


def _mean(group: Sequence[DataSet], name: str, digits: int = 2) -> str:
    """`0.97 ± 0.01`; under several policies the range of their means."""
    metrics = _each(group, name)
    known = [metric for metric in metrics if metric["value"] is not None]
    if not known:
        reasons = [str(metric["reason"]) for metric in metrics if metric.get("reason")]
        return f"no value: {reasons[0]}" if reasons else DASH
    values = [float(metric["value"]) for metric in known]
    policies = len({one.start for one in group})
    if name in JUDGED and policies > 1:
        return f"{plain(min(values), digits)} to {plain(max(values), digits)} ({policies} policies)"
    mean = plain(fmean(values), digits)
    errors = [float(metric["standard_error"]) for metric in known if metric.get("standard_error") is not None]
    if len(errors) < len(known):
        return mean
    return f"{mean} ± {plain(math.hypot(*errors) / len(errors), digits)}"


def _share(group: Sequence[DataSet], name: str) -> str:
    values = [float(metric["value"]) for metric in _each(group, name) if metric["value"] is not None]
    return f"{100 * fmean(values):.1f}%" if values else DASH


def _each(group: Sequence[DataSet], name: str) -> list[Mapping[str, Any]]:
    """One metric for each set of texts, or for each policy that takes it."""
    return list({(one.texts, one.start if name in JUDGED else None): one.metric(name) for one in group}.values())


def orders(measured: Sequence[DataSet]) -> Table:
    """By each measure: which of two sources from one start is the more diverse, and which the better."""
    couples = list(dict.fromkeys((a.source, b.source) for a, b in _comparisons(measured)))
    rows = []
    for name, label in {**NAMES, "quality": "quality under the oracle"}.items():
        said = _said(measured, (name,))
        cells = [label]
        for couple in couples:
            signs = [sign for (a, b, _), (sign,) in said.items() if (a[0], b[0]) == couple]
            first, second, neither = (signs.count(one) for one in (1, -1, 0))
            cells.append(f"{couple[0]} {first}, {couple[1]} {second}, cannot tell {neither}" if signs else DASH)
        rows.append(Row(tuple(cells)))
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
    """Each two measures of diversity beside each other: over sources, and over the prompts of one set."""
    rows = []
    for names, found, rhos in _agreements(measured):
        spread = f"{signed(median(rhos))} [{signed(min(rhos))}, {signed(max(rhos))}]" if rhos else DASH
        cells = (
            _both(names),
            str(found["same"]),
            str(found["opposite"]),
            str(found["undecided"]),
            signed(found["tau"]),
            spread,
            str(len(rhos)),
        )
        rows.append(Row(cells))
    return Table(
        "agreement",
        "Do the measures of diversity agree?",
        "Two sources of one round and seed, ordered by both measures: alike, opposite, or one of the measures cannot "
        "tell; tau: alike minus opposite over both. Last: Spearman rank correlation over the prompts of one set, "
        "median and range over sets. All measures count more diversity upward.",
        ("Measures", "Same order", "Opposite", "Cannot tell", "Kendall's tau", "Over prompts", "Sets"),
        tuple(rows) if any(cell != DASH for row in rows for cell in row.cells[-3:-1]) else (),
    )


Couple = tuple[DataSet, DataSet]


def _comparisons(measured: Sequence[DataSet]) -> list[Couple]:
    """Every two sources of one start and seed, in the registry's order of sources."""
    known = list(registry.SOURCES)
    ranked = sorted(measured, key=lambda one: known.index(one.source) if one.source in known else len(known))
    return [(a, b) for a, b in combinations(ranked, 2) if (a.start, a.seed) == (b.start, b.seed)]


def _said(measured: Sequence[DataSet], names: Sequence[str]) -> dict[Any, tuple[int, ...]]:
    """Comparison -> what each measure says: 1 its first source has more, -1 the second, 0 cannot tell.

    Left out where one of the measures has no value. Two sets of texts are one comparison, or one a policy where a
    measure is that policy's.
    """
    found = {}
    for a, b in _comparisons(measured):
        said = [larger(a.metric(name), b.metric(name)) for name in names]
        if None not in said:
            judge = a.start if JUDGED.intersection(names) else None
            signs = (sign * MORE.get(name, 1) for sign, name in zip(said, names, strict=True) if sign is not None)
            found[(a.texts, b.texts, judge)] = tuple(signs)
    return found


def _agreements(measured: Sequence[DataSet]) -> list[tuple[tuple[str, str], dict[str, Any], list[float]]]:
    """For each two measures: their concordance over sources, and their rank correlation in each set."""
    rows = []
    for names in combinations(NAMES, 2):
        rhos = {}
        for one in measured:
            rho = ((one.data or {}).get("agreement") or {}).get(", ".join(names), {}).get("value")
            if rho is not None:
                rhos[(one.texts, one.start if JUDGED.intersection(names) else None)] = float(rho)
        said = [(ours, theirs) for ours, theirs in _said(measured, names).values()]
        rows.append((names, concordance(said), list(rhos.values())))
    return rows


def good_or_diverse(book: Book, measured: Sequence[DataSet]) -> Table:
    """Static candidates against another model's: both off-policy, so what differs is how diverse and how good."""
    others = [key for key, one in registry.SOURCES.items() if one.sampled_from]
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


def _contrast(book: Book, start: Start, source: str, measured: Sequence[DataSet]) -> Iterator[Row]:
    """One row for each learning rate that both sources have, over the seeds that both have."""
    rungs = {
        key: {(rung.learning_rate, rung.seed): rung for rung in book.ladder(start, key)} for key in ("off", source)
    }
    for learning_rate in sorted({key[0] for key in rungs["off"].keys() & rungs[source].keys()}):
        seeds = [
            seed for given, seed in sorted(rungs[source]) if given == learning_rate and (given, seed) in rungs["off"]
        ]
        theirs, ours = ([rungs[key][learning_rate, seed] for seed in seeds] for key in (source, "off"))
        rng = np.random.default_rng(stream(0, "report", "diverse", *start.before, start.model, start.method, source))
        found = statistics.effectiveness_ratio(
            [rung.gains("gain") for rung in theirs],
            [rung.gains("gain") for rung in ours],
            rng,
            unit(dict(zip(seeds, ours, strict=True))),
        )
        better = {"on": source, "off": "static"}.get(verdict(found), UNDECIDED)
        here = replace(start, method=start.method if start.before else "")
        seen = {
            key: [one for one in measured if (one.start, one.source) == (here, key) and one.seed in seeds]
            for key in rungs
        }
        yield Row(
            (
                policy_name(book, start),
                source,
                f"{rate(learning_rate)} ({count(len(seeds), 'seed')})",
                _mean(seen[source], "quality", 0),
                f"{_mean(seen['off'], 'embedding')} / {_mean(seen[source], 'embedding')}",
                gain(found["off"]),
                gain(found["on"]),
                gain(found["difference"]),
                better,
            )
        )


def _both(names: tuple[str, str]) -> str:
    return f"{NAMES[names[0]]} and {NAMES[names[1]]}"


def _place(one: DataSet) -> tuple[Any, ...]:
    """Fixed sources first, then by round; sampled ones by model, method and what came before."""
    known = list(registry.SOURCES)
    source = known.index(one.source) if one.source in known else len(known)
    start = one.start
    return (
        on_policy(one.source),
        source,
        start.round,
        *order(start.model, start.method),
        start.before[::-1],
        one.seed,
    )
