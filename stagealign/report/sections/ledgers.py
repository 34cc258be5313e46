"""Complete tables: every rung, the pairs of every round, and every run, in any state."""

from collections.abc import Iterator

from stagealign.report.read import facts
from stagealign.report.read.book import Book, label, weights
from stagealign.report.read.contrasts import NOT_RUN, rung_metric
from stagealign.report.read.rungs import Rung, Start, value
from stagealign.report.sections.rows import Table, TableRow, policy_name
from stagealign.report.sections.words import DASH, count, duration, gain, percent, plain, rate


def ladder(book: Book) -> Table:
    """Table of every rung of every cell, missing ones included."""
    rows = [_rung_row(book, rung) for rung in book.rungs]
    for result in book.results:
        if result["state"] != "done":
            name = f"{label(result['model'], book.scale)}, {result['cell']}"
            rows.append(_state_row(name, str(result["seed"]), result["state"], result.get("reason")))
    rows += [_state_row(group, seeds, NOT_RUN, None) for group, seeds in _missing(book)]
    return Table(
        "ladder",
        "Every rung of the learning-rate ladder",
        "Test prompts. Length in tokens, KL in nats a completion; degenerate: share of completions with too many "
        "repeated bigrams; truncated: share that ran into the token limit.",
        (
            "Starting policy",
            "Source",
            "Learning rate",
            "Seed",
            "State",
            "Gain",
            "Clean gain",
            "KL",
            "Length",
            "Degenerate",
            "Truncated",
            "Schedules",
        ),
        tuple(rows),
        folded=True,
    )


def pairs(book: Book) -> Table:
    """Table of each round's training pairs, with dropped rows by reason."""
    rows: dict[tuple[str, ...], TableRow] = {}
    for result in book.results:
        sources: tuple[str, ...] = ()
        for entry in result.get("rounds", []):
            start = Start(result["model"]["key"], result["method"]["key"], sources)
            sources = (*sources, entry["source"])
            entry_pairs = entry.get("pairs")
            if not entry_pairs:
                continue
            dropped = [f"{reason}: {number}" for reason, number in sorted((entry_pairs.get("drops") or {}).items())]
            cells = (policy_name(book, start), entry["source"], str(result["seed"]))
            figures = (
                _number(entry_pairs.get("n", entry_pairs.get("pairs")), 0),
                _number(entry_pairs.get("margin"), 3),
                _number(entry_pairs.get("ties"), 0),
                _number(entry_pairs.get("truncated"), 0),
                "\n".join(dropped) or "none",
            )
            rows[cells] = TableRow((*cells, *figures))
    return Table(
        "pairs",
        "Training pairs of each round",
        "Margin: mean oracle score of chosen minus rejected. Dropped: rows left out, by reason.",
        ("Starting policy", "Source", "Seed", "Pairs", "Margin", "Ties", "Truncated", "Dropped"),
        tuple(rows.values()),
        folded=True,
    )


def runs(book: Book) -> Table:
    """Table with one row for each run: hardware, commit and cost."""
    rows = []
    for result in book.results:
        forwards = facts.reference_forwards(result)
        model = result["model"]
        state = result["state"] if result["state"] == "done" else f"{result['state']}: {result.get('reason')}"
        memory = facts.peak_memory(result)
        cells = (
            result["cell"],
            str(result["seed"]),
            state,
            f"{weights(model, book.scale)}: {model.get('checkpoint', DASH)}",
            "\n".join(facts.distinct([result], "commit")) or DASH,
            "\n".join(facts.distinct([result], "hardware")) or DASH,
            duration(facts.seconds(result)),
            DASH if memory is None else f"{memory:.0f} MiB",
            DASH if forwards is None else f"{forwards[0]} / {forwards[1]}",
        )
        rows.append(TableRow(cells, result["state"]))
    rows += [
        TableRow((group, seeds, NOT_RUN, *[DASH] * 6), NOT_RUN) for group, seeds in _missing(book)
    ]  # fmt: skip
    return Table(
        "runs",
        "Runs",
        "Time to build the run's artifacts; shared ones count in every run that uses them. Reference forwards: "
        "computed / reused from other methods, learning rates, seeds and cells.",
        (
            "Cell",
            "Seed",
            "State",
            "Weights",
            "Commit",
            "Hardware",
            "Time",
            "Peak memory",
            "Reference forwards",
        ),
        tuple(rows),
        folded=True,
    )


def _rung_row(book: Book, rung: Rung) -> TableRow:
    head = (policy_name(book, rung.start), rung.source, rate(rung.learning_rate), str(rung.seed), rung.state)
    schedules = ", ".join(dict.fromkeys(cell.rpartition("-")[2] for cell in rung.cells))
    if rung.state != "done":
        return TableRow((*head, *[DASH] * 6, schedules), rung.state)
    tail = (
        gain(rung_metric(rung, "gain")),
        gain(rung_metric(rung, "clean_gain")),
        plain(rung.metric("kl"), 1),
        plain(rung.metric("length"), 1),
        percent(rung.metric("degenerate")),
        percent(rung.metric("truncated")),
        schedules,
    )
    return TableRow((*head, *tail))


def _state_row(name: str, seed: str, state: str, reason: object) -> TableRow:
    words = f"{state}: {reason}" if reason else state
    return TableRow((name, DASH, DASH, seed, words, *[DASH] * 7), state)


def _missing(book: Book) -> Iterator[tuple[str, str]]:
    """Runs of the grid without a result, one line for each model and method: (cells, seeds)."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    seeds: dict[str, list[str]] = {}
    for name in book.missing:
        cell, _, seed = name.rpartition("-seed")
        seeds.setdefault(cell, []).append(seed)
    for cell, numbers in seeds.items():
        head, _, schedule = cell.rpartition("-")
        groups.setdefault((head, tuple(numbers)), []).append(schedule)
    for (head, shared), schedules in groups.items():
        yield f"{head}: {', '.join(schedules)} ({count(len(schedules) * len(shared), 'run')})", ", ".join(shared)


def _number(metric: object, digits: int) -> str:
    return plain(value(metric), digits)
