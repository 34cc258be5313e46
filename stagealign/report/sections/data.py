"""Training data of the rounds: diversity, quality and length, and the agreement of diversity measures."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from stagealign.report.read.book import Book
from stagealign.report.read.data_sets import ENOUGH, DataSet, data_sets, mean_over, share_over
from stagealign.report.read.sides import on_policy
from stagealign.report.sections.agreement import (
    agreement,
    agreement_words,
    agreements,
    both_names,
    good_or_diverse,
    orders,
)
from stagealign.report.sections.findings import ReportFinding
from stagealign.report.sections.rows import Table, TableRow, policy_name
from stagealign.report.sections.words import DASH, NOT_MEASURED, count, listing, signed


def data_tables(book: Book) -> list[Table]:
    """Tables of the data sets, of the more diverse source by each measure, and of the measures' agreement."""
    sets = data_sets(book)
    measured = [data_set for data_set in sets if data_set.data is not None]
    return [good_or_diverse(book, measured), orders(measured), agreement(measured), described(book, sets)]


def data_statements(book: Book) -> Iterator[ReportFinding]:
    """Finding on whether the measures of diversity agree."""
    measured = [data_set for data_set in data_sets(book) if data_set.data is not None]
    if book.plumbing or not measured:
        return
    rows = agreements(measured)
    alike = [names for names, counts, _ in rows if counts["same"] and not counts["opposite"]]
    against = [(names, counts) for names, counts, _ in rows if counts["opposite"]]
    silent = len(rows) - len(alike) - len(against)
    text = (
        f"Does diversity by one measure hold with others? Of {count(len(rows), 'pair')} of measures, {len(alike)} "
        f"order two sources alike wherever both can tell, {len(against)} contradict each other at least once"
    )
    words = [
        f"{both_names(names)} in {counts['opposite']} of {counts['same'] + counts['opposite']}"
        for names, counts in against
    ]
    text += f" ({listing(words, 4)})" if words else ""
    text += f", {silent} can never both tell" if silent else ""
    compared = len(agreement_words(measured, ("distinct_2",)))
    text += f"; {count(compared, 'comparison')} of two sources from one start."
    within = {names: median(rhos) for names, _, rhos in rows if rhos}
    if within:
        low, high = min(within, key=within.__getitem__), max(within, key=within.__getitem__)
        text += (
            f" Over the prompts of one set their rank correlation is {signed(within[low])} ({both_names(low)}) to "
            f"{signed(within[high])} ({both_names(high)}), medians of {count(len(measured), 'set')}."
        )
    yield ReportFinding("found" if alike and not against and compared >= ENOUGH else "unsure", text)


def described(book: Book, sets: Sequence[DataSet]) -> Table:
    """Table with one row for each set of texts, over seeds."""
    groups: dict[Any, list[DataSet]] = {}
    for data_set in sets:
        source, _, place = data_set.texts
        groups.setdefault((source, place), []).append(data_set)
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


def _row(book: Book, group: Sequence[DataSet]) -> TableRow:
    first, measured = group[0], [data_set for data_set in group if data_set.data is not None]
    names = [policy_name(book, first.start) if first.start.method else f"{book.label(first.start.model)}, start"]
    name = f"{first.source}, {names[0] if on_policy(first.source) else f'round {first.start.round}'}"
    seeds = ", ".join(map(str, sorted({data_set.seed for data_set in group})))
    if not measured:
        return TableRow((name, seeds, NOT_MEASURED, *[DASH] * 8), NOT_MEASURED)
    left_out = {
        reason: number
        for data_set in measured
        for reason, number in ((data_set.data or {}).get("drops") or {}).items()
        if number
    }
    prompts = sorted({int((data_set.data or {}).get("prompts", 0)) for data_set in measured})
    cells = (
        name,
        seeds,
        " to ".join(str(number) for number in dict.fromkeys((prompts[0], prompts[-1])))
        + "".join(f"\nleft out, {reason}: {number}" for reason, number in sorted(left_out.items())),
        f"{mean_over(measured, 'distinct_1', 3)}\n{mean_over(measured, 'distinct_2', 3)}",
        mean_over(measured, "self_bleu", 3),
        mean_over(measured, "embedding"),
        f"{mean_over(measured, 'surprise')}\n{mean_over(measured, 'surprise_gap')}",
        mean_over(measured, "quality", 0),
        f"{mean_over(measured, 'length', 1)}\n{mean_over(measured, 'length_gap', 1)}",
        mean_over(measured, "margin"),
        ", ".join(share_over(measured, name) for name in ("ties", "duplicates", "repeats")),
    )
    return TableRow(cells)
