"""Gold reward against KL over each source's ladder of learning rates."""

from collections.abc import Sequence
from typing import Any

from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import Contrast, Side
from stagealign.report.read.sides import COMPARED, ordered
from stagealign.report.sections.drawing import FAINT, grid, legend, render, source_look
from stagealign.report.sections.rows import method_name

ABOUT = (
    "Gain in gold reward against KL to the round's start (nats a completion), from the start at 0 over the ladder's "
    "learning rates, with 95% intervals. The source whose line lies above gains more for the same movement. Square, "
    "blue: off-policy. Circle, orange: on-policy."
)


def frontier(book: Book, contrasts: Sequence[Contrast]) -> str:
    """SVG text; empty if no starting policy has both sources with a KL."""
    shown = [
        contrast
        for contrast in contrasts
        if {side.source for side in contrast.sides if side.kl is not None} >= set(COMPARED)
    ]
    return render("frontier", ABOUT, lambda: _draw(book, shown)) if shown else ""


def _draw(book: Book, shown: Sequence[Contrast]) -> Any:
    columns = 3
    rows = -(-len(shown) // columns)
    figure, axes = grid(rows, columns, 1.7, sharex=False)
    panels = [axis for line in axes for axis in line]
    for axis in panels[len(shown) :]:
        axis.set_visible(False)
    for axis, contrast in zip(panels, shown, strict=False):
        axis.axhline(0, color=FAINT, linewidth=0.8)
        axis.set_title(
            f"{book.label(contrast.start.model)}, {method_name(book, contrast.start.method)}\n{contrast.start.name}",
            loc="left",
        )
        for source in ordered(side.source for side in contrast.sides):
            _line(axis, source, [side for side in contrast.sides if side.source == source and side.kl is not None])
        axis.set_xlim(left=0)
    for line in axes:
        line[0].set_ylabel("gain, gold reward")
    for axis in panels[max(0, len(shown) - columns) : len(shown)]:
        axis.set_xlabel("KL, nats")
    legend(figure, (side.source for contrast in shown for side in contrast.sides))
    return figure


def _line(axis: Any, source: str, sides: list[Side]) -> None:
    points = sorted(((side.kl or 0.0, side.gain) for side in sides), key=lambda point: point[0])
    places, values = [kl for kl, _ in points], [gain["value"] for _, gain in points]
    low = [gain["value"] - gain["interval"][0] for _, gain in points]
    high = [gain["interval"][1] - gain["value"] for _, gain in points]
    colour, shape = source_look(source)
    axis.plot([0.0, *places], [0.0, *values], color=colour, linewidth=1)
    axis.errorbar(places, values, yerr=[low, high], fmt=shape, color=colour, markersize=4.5, elinewidth=0.7)
