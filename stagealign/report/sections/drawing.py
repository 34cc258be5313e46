"""Shared parts of all figures: colours, style, panels, legend, and reproducible SVG text."""

import io
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from stagealign.grid import methods, sources
from stagealign.report.read.sides import COMPARED, data_name, others

SOURCE_COLOUR = {"off": "#0072b2", "on": "#d55e00"}
"""Blue and vermilion of Okabe and Ito, which colour-blind readers can tell apart; shapes differ too."""
MODEL_COLOUR = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito, one for each model."""
SOURCE_SHAPE = {"off": "s", "on": "o"}
OTHER_COLOURS, OTHER_SHAPES = ("#009e73", "#cc79a7", "#56b4e9"), ("^", "v", "P")
"""Looks of the grid's other sources, in its order."""
INK, PAPER, FAINT = "#222222", "#ffffff", "#999999"
DARK = {
    INK: "#e6e6e6",
    PAPER: "#15181c",
    FAINT: "#7d7d7d",
    "#0072b2": "#56b4e9",
    "#d55e00": "#e69f00",
    "#009e73": "#33c79b",
}
WIDTH = 7.2
"""Inches; narrow enough for a phone."""
STYLE = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


def source_look(source: str) -> tuple[str, str]:
    """Colour and marker of a source; ink and a diamond for one that the grid does not have."""
    if source in SOURCE_COLOUR:
        return SOURCE_COLOUR[source], SOURCE_SHAPE[source]
    known = others(sources.SOURCES)
    if source not in known:
        return INK, "D"
    place = known.index(source)
    return OTHER_COLOURS[place % len(OTHER_COLOURS)], OTHER_SHAPES[place % len(OTHER_SHAPES)]


METHOD_MARKS = {"o": "circle", "^": "triangle", "s": "square", "D": "diamond"}
METHOD_LINES = {"-": "solid", "--": "dashes", ":": "dots", "-.": "dashes and dots"}
"""Markers and line styles of methods, in the order of `grid.methods.BASES`, with their names."""


def method_look(method: str) -> tuple[str, str]:
    """Marker and line style of a method; a variant has those of the first method."""
    keys = [base.key for base in methods.BASES]
    place = keys.index(method) if method in keys else 0
    marks, lines = list(METHOD_MARKS), list(METHOD_LINES)
    return marks[place % len(marks)], lines[place % len(lines)]


def marks_in_words() -> str:
    """`circle: DPO, triangle: SLiC-HF`."""
    return ", ".join(f"{METHOD_MARKS[method_look(base.key)[0]]}: {base.name}" for base in methods.BASES)


def lines_in_words() -> str:
    """`dashes: SLiC-HF`: the methods after the first, whose lines are solid."""
    return ", ".join(f"{METHOD_LINES[method_look(base.key)[1]]}: {base.name}" for base in methods.BASES[1:])


def grid(
    rows: int, columns: int, height: float, sharex: bool, sharey: Literal["all", "row"] = "all"
) -> tuple[Any, Any]:
    """A figure with the reports' width and its `rows` x `columns` panels, each `height` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * rows + 0.7), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def legend(figure: Any, drawn: Iterable[str] = ()) -> None:
    """Writes a legend above the panels: the two compared sources, and each other source in `drawn`."""
    from matplotlib.lines import Line2D

    lines = []
    for source in (*COMPARED, *others(drawn)):
        colour, shape = source_look(source)
        lines.append(Line2D([], [], color=colour, marker=shape, label=f"{data_name(source)} data"))
    figure.legend(handles=lines, loc="outside upper left", ncols=len(lines), frameon=False)


def render(name: str, about: str, draw: Callable[[], Any]) -> str:
    """SVG text of the figure that `draw` returns, with the same bytes each time; `about` is its accessible label."""
    import matplotlib.style

    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": f"stagealign {name}"}]):
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw().savefig(buffer, format="svg", metadata=metadata)
    return _finish(buffer.getvalue(), name, about)


def _finish(svg: str, name: str, about: str) -> str:
    """Prefixes ids with `name`, so that one page can hold two figures; adds the accessible label and dark colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    rules = "".join(
        f'svg [style*="{part}: {light}"]{{{part}:{dark} !important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<title>{about}</title>\n<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n"
    head, bracket, body = svg.partition(">")
    return f'{head} role="img"{bracket}\n{style}{body.lstrip()}'
