"""Generated parts of the README between markers: demo, meter, speed and fault-injection tests."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError
from stagealign.grid.cell import Cell
from stagealign.report.build import SummaryRow, summary_rows
from stagealign.report.read.archive import archive_label, newest_book
from stagealign.report.read.book import Book
from stagealign.report.sections.words import DASH

BLOCK = re.compile(r"(<!-- demo:[^>]*-->\n).*?(<!-- /demo -->)", re.DOTALL)
METER = re.compile(r"(<!-- meter:[^>]*-->\n).*?(<!-- /meter -->)", re.DOTALL)
SPEED = re.compile(r"(<!-- speed:[^>]*-->\n).*?(<!-- /speed -->)", re.DOTALL)
FAULTS = re.compile(r"(<!-- faults:[^>]*-->\n).*?(<!-- /faults -->)", re.DOTALL)
FIGURE = "boundary.svg"
BETTER = (
    "`better` uses the 95% interval of each row's own difference. The report's verdicts are corrected for all claims\n"
    "(Holm), so a row that is decided here can be under-powered there."
)


def with_demo(readme: str, results: Path, cells: Sequence[Cell], reports: str) -> str:
    """`readme` with the demo's table, its figure and the central finding between its markers.

    Raises StagealignError if the markers are missing.
    """
    if not BLOCK.search(readme):
        raise StagealignError(
            "README: the markers `<!-- demo: ... -->` and `<!-- /demo -->` are missing; put them back"
        )
    scale = cells[0].scale.key
    book = newest_book(results, scale)
    rows = summary_rows(results, cells)
    lines = ["| " + " | ".join(SummaryRow.HEADINGS) + " |", "|" + "---|" * len(SummaryRow.HEADINGS)]
    lines += ["| " + " | ".join(cell or DASH for cell in row.cells) + " |" for row in rows]
    label = [archive_label(book), ""] if book.archived else []
    figure = f"![Boundary score by round, lab stand-ins]({reports}/{book.place}/{FIGURE})\n"
    text = "\n".join([*label, *lines, "", BETTER, "", figure])
    text += _central(book)
    return BLOCK.sub(lambda match: match[1] + text + match[2], readme)


def _central(book: Book) -> str:
    """Finding of all results of a scale on the paper's central claim; empty without results."""
    from stagealign.report.pages.page import markdown
    from stagealign.report.read.contrasts import contrasts
    from stagealign.report.sections.findings import central

    finding = central(book, contrasts(book))
    return f"\nOver the whole {book.scale} grid: {markdown(finding)}\n" if finding else ""


def with_meter(readme: str, results: Path) -> str:
    """`readme` with the measured cost of the boundary meter between its markers; unchanged without markers."""
    return _between(
        METER, readme, [f"- {line}" for line in meter_lines(results / "boundary")] or ["- Not measured yet."]
    )


def with_speed(readme: str, results: Path) -> str:
    """`readme` with the speed benchmark's table between its markers; unchanged without markers."""
    from stagealign.report.pages.speed import readme_lines

    return _between(SPEED, readme, readme_lines(results))


def with_faults(readme: str, results: Path) -> str:
    """`readme` with the table of fault-injection tests between its markers; unchanged without markers."""
    from stagealign.report.pages.faults import readme_lines

    return _between(FAULTS, readme, readme_lines(results))


def _between(markers: re.Pattern[str], readme: str, lines: Sequence[str]) -> str:
    """`readme` with these lines between its markers."""
    text = "".join(f"{line}\n" for line in lines)
    return markers.sub(lambda match: match[1] + text + match[2], readme)


def meter_lines(folder: Path) -> list[str]:
    """One sentence for each measurement of `python -m benchmarks.boundary` in `folder`."""
    lines = []
    for row in _rows(folder, "real_run"):
        took, cost, machine = row["used"], row["cost"], row["hardware"]
        lines.append(
            f"**Cost.** {row['policy']} on {row['data']['prompts']} prompts for film reviews, `--decide 0.95`: "
            f"{row['stage']} after {row['prompts_used']} prompts, {took['seconds']:.0f} s from start to answer "
            f"({took['cpu_seconds']:.0f} s of processor time; {machine['processor']}, threads: {machine['threads']}). "
            f"Sampling cost {100 * cost['share_of_dpo_epoch']:.1f}% of one DPO epoch on these "
            f"{row['data']['rows given']} pairs. The paper's {100 * cost['paper_share']:.1f}% is 2,000 of its 61,135 "
            "prompts, without generation."
        )
    passes = _rows(folder, "oracle_pass")
    if passes:
        ratios = "; ".join(
            f"{row['what'].partition(' of ')[0]} (median row of {row['median_row_tokens']:.0f} tokens) "
            f"{row['ratio']['median']:.1f}x [{row['ratio']['least']:.1f}, {row['ratio']['most']:.1f}], "
            f"in processor time {row['ratio']['processor']:.1f}x"
            for row in passes
        )
        lines.append(
            f"**PairRM's pass** against the loop of its README, one pair at a time ({passes[0]['weights']}): {ratios}."
        )
    memory = _rows(folder, "memory")
    if memory:
        sizes = "; ".join(f"{row['oracle']} {_sizes(row)}" for row in memory)
        lines.append(f"**Peak memory** of the command: {sizes}.")
    return lines


def _sizes(row: dict[str, Any]) -> str:
    sizes = [f"{value['peak_mb']:.0f} MB for {name}" for name, value in row.items() if name.endswith(" rows")]
    return " and ".join(sizes)


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one measurement; empty if it was not made."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["found"] if file.is_file() else []
