"""The README's first table: the demo's rows, between two markers, so that no number there is typed by hand."""

import re
from collections.abc import Sequence
from pathlib import Path

from stagealign.errors import StagealignError
from stagealign.report import SummaryRow, summary_rows
from stagealign.report.words import DASH
from stagealign.spec import Cell

BLOCK = re.compile(r"(<!-- demo:[^>]*-->\n).*?(<!-- /demo -->)", re.DOTALL)
FIGURE = "boundary.svg"


def with_demo(readme: str, results: Path, cells: Sequence[Cell], reports: str) -> str:
    """`readme` with the demo's table and figure between its markers.

    Raises StagealignError where the markers are missing.
    """
    if not BLOCK.search(readme):
        raise StagealignError(
            "README: the markers `<!-- demo: ... -->` and `<!-- /demo -->` are missing; put them back"
        )
    rows = summary_rows(results, cells)
    lines = ["| " + " | ".join(SummaryRow.HEADINGS) + " |", "|" + "---|" * len(SummaryRow.HEADINGS)]
    lines += ["| " + " | ".join(cell or DASH for cell in row.cells) + " |" for row in rows]
    scale = cells[0].scale.key
    text = "\n".join(lines) + f"\n\n![Boundary score by round, lab stand-ins]({reports}/{scale}/{FIGURE})\n"
    return BLOCK.sub(lambda found: found[1] + text + found[2], readme)
