"""Fault-injection tests and their outcome, from the benchmark's files in `results/faults/`."""

import json
from pathlib import Path
from typing import Any

from stagealign.base.shapes import NUMBER, TEXT, WHOLE, misfit
from stagealign.report.sections.rows import Table, TableRow

FOLDER = "faults"
SHAPE = {
    "part": TEXT,
    "title": TEXT,
    "seconds": NUMBER,
    "rows": [{"tried": TEXT, "times": WHOLE, "survived": WHOLE, "found": TEXT, "wrong": [TEXT]}],
}


def faults(results: Path) -> Table | None:
    """Table with one row for each injected fault; None if there are no results. A damaged file becomes a row."""
    rows = [row for path in sorted((results / FOLDER).glob("*.json")) for row in _rows(path)]
    if not rows:
        return None
    broken = sum(row.state != "done" for row in rows)
    note = (
        f"Faults injected into a small lab, its files, readers and servers: {len(rows) - broken} of {len(rows)} "
        "survived. Survived: the bytes and numbers of an undisturbed run, or a clear message without loss. 0 times: "
        "the fault could not be injected on that machine. Made by `python -m benchmarks.faults`."
    )
    return Table(
        "faults",
        "Fault-injection tests",
        note,
        ("part", "tried", "times", "survived", "what was found"),
        tuple(rows),
        folded=True,
    )


def readme_lines(results: Path) -> list[str]:
    """Lines of a Markdown table with one row for each part of the tests. A damaged file becomes a row."""
    lines = ["| attack | kinds | times | survived |", "|---|---|---|---|"]
    for path in sorted((results / FOLDER).glob("*.json")):
        part = _read(path)
        if isinstance(part, str):
            lines.append(f"| {path.stem} | {part} | | |")
            continue
        rows = part["rows"]
        times, survived = (sum(row[name] for row in rows) for name in ("times", "survived"))
        lines.append(f"| {part['title']} | {len(rows)} | {times:,} | {'all' if times == survived else survived} |")
    return lines if len(lines) > 2 else ["Not measured yet: `python -m benchmarks.faults`."]


def _read(path: Path) -> dict[str, Any] | str:
    """Results of one part, or the fault of its file."""
    try:
        part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = misfit(part, SHAPE)
    except (OSError, ValueError, RecursionError):
        wrong = "it is not JSON"
    again = f"`python -m benchmarks.faults --part {path.stem}`"
    return f"damaged file: {wrong}; {again} rebuilds it" if wrong else part


def _rows(path: Path) -> list[TableRow]:
    part = _read(path)
    if isinstance(part, str):
        return [TableRow((path.stem, part, "", "", ""), "failed")]
    return [_row(part["title"], row) for row in part["rows"]]


def _row(title: str, row: dict[str, Any]) -> TableRow:
    outcome = "; ".join([row["found"], *row["wrong"]])
    state = "done" if row["survived"] == row["times"] else "failed"
    return TableRow((title, row["tried"], f"{row['times']:,}", f"{row['survived']:,}", outcome), state)
