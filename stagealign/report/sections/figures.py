"""Figures as SVG text: the same bytes for the same results, light or dark as the reader's system asks."""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import BOUNDARY, Contrast, Side, boundary, counted
from stagealign.report.sections.rows import method_name
from stagealign.report.sections.words import rate

SOURCE_COLOUR = {"off": "#0072b2", "on": "#d55e00"}
"""Blue and vermilion of Okabe and Ito, told apart by all readers; shapes differ too."""
MODEL_COLOUR = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito, one a model."""
SHAPE = {"off": "s", "on": "o"}
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
"""Inches; narrow, so that a phone shows it whole."""
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


def figures(book: Book, contrasts: Sequence[Contrast]) -> dict[str, str]:
    """SVG text by file name; a figure without data is left out."""
    drawn = {}
    if any(one.sides for one in contrasts):
        drawn["gains.svg"] = _named("gains", lambda: _gains(book, [one for one in contrasts if one.sides]))
    ruled = counted(contrasts)
    if any(map(_has_ratio, ruled)):
        drawn["rule.svg"] = _named("rule", lambda: _rule(book, ruled))
    if any(boundary([policy.metrics]) for policy in book.policies):
        drawn["boundary.svg"] = _named("boundary", lambda: _boundary(book))
    return drawn


def _named(name: str, draw: Callable[[], Any]) -> str:
    return render(name, ABOUT[f"{name}.svg"], draw)


ABOUT = {
    "gains.svg": "Gain in gold reward by starting policy, source and learning rate, with 95% intervals; small "
    "numbers: KL to the round's start in nats a completion. Square, blue: off-policy. Circle, orange: on-policy.",
    "rule.svg": "Effectiveness ratio (gain from on-policy over gain from off-policy data, each at its best learning "
    "rate, logarithmic) against the boundary score before the round, with 95% intervals. By the paper's rule every "
    "point lies in a shaded quarter: below 1 left of the line at 0.5, above 1 right of it. A starting policy whose "
    "ratio has no value is not drawn. Full: round 1, hollow: later; circle: DPO, triangle: SLiC-HF.",
    "boundary.svg": "Boundary score of each policy by round, with 95% intervals and the line at 0.5. A line has "
    "the colour of the round's data (square, blue: off-policy; circle, orange: on-policy); dashes: SLiC-HF.",
}


def _gains(book: Book, contrasts: list[Contrast]) -> Any:
    """Rows: model and method; columns: start; x: learning rate; y: gain."""
    rows = list(dict.fromkeys((one.start.model, one.start.method) for one in contrasts))
    columns = list(dict.fromkeys(one.start.name for one in sorted(contrasts, key=lambda c: c.start.before[::-1])))
    rates = sorted({side.learning_rate for one in contrasts for side in one.sides})
    figure, axes = grid(len(rows), len(columns), 1.6, sharex=True)
    for row, (model, method) in enumerate(rows):
        for column, name in enumerate(columns):
            axis = axes[row][column]
            here = next(
                (c for c in contrasts if (c.start.model, c.start.method, c.start.name) == (model, method, name)), None
            )
            axis.axhline(0, color=FAINT, linewidth=0.8)
            axis.set_xlim(-0.5, len(rates) - 0.5)
            axis.set_xticks(range(len(rates)), [rate(one) for one in rates])
            head = f"{book.label(model)}, {method_name(book, method)}" if column == 0 else ""
            axis.set_title(f"{head}\n{name}", loc="left")
            axis.tick_params(bottom=row == len(rows) - 1)
            if here is None:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=FAINT)
                continue
            for side in here.sides:
                _point(axis, rates.index(side.learning_rate), side)
    for axis in axes[-1]:
        axis.set_xlabel("learning rate")
    for line in axes:
        line[0].set_ylabel("gain, gold reward")
    legend(figure)
    return figure


def _point(axis: Any, place: int, side: Side) -> None:
    x = place + {"off": -0.14, "on": 0.14}[side.source]
    low, high = side.gain["interval"]
    middle, colour = side.gain["value"], SOURCE_COLOUR[side.source]
    axis.errorbar(
        [x], [middle], yerr=[[middle - low], [high - middle]], fmt=SHAPE[side.source], color=colour, markersize=5
    )
    if side.kl is not None:
        offset, align = {"off": (-7, "right"), "on": (7, "left")}[side.source]
        axis.annotate(
            f"{side.kl:.0f}", (x, middle), (offset, -3), textcoords="offset points", ha=align, fontsize=8, color=INK
        )


def _has_ratio(one: Contrast) -> bool:
    view = one.view("best")
    return one.boundary is not None and view is not None and view.ratio["value"] is not None


def _rule(book: Book, contrasts: list[Contrast]) -> Any:
    """Ratio against score, one point a starting policy; colour: model."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure, axes = grid(1, 1, 3.6, sharex=False)
    axis = axes[0][0]
    shown = [one for one in contrasts if _has_ratio(one)]
    models = list(dict.fromkeys(one.start.model for one in shown))
    axis.set_yscale("log")
    for one in shown:
        _ratio_point(axis, one, MODEL_COLOUR[models.index(one.start.model) % len(MODEL_COLOUR)])
    low, high = axis.get_ylim()
    low, high = min(low, 0.5), max(high, 2.0)
    axis.axvspan(0, BOUNDARY, ymax=_share(1, low, high), color=FAINT, alpha=0.15, linewidth=0)
    axis.axvspan(BOUNDARY, 1, ymin=_share(1, low, high), color=FAINT, alpha=0.15, linewidth=0)
    axis.axvline(BOUNDARY, color=INK, linewidth=0.8, linestyle=":")
    axis.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 1)
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel("boundary score before the round")
    axis.set_ylabel("effectiveness ratio, on / off")
    _models_legend(figure, book, models)
    return figure


def _share(value: float, low: float, high: float) -> float:
    """Place of `value` on a logarithmic axis, 0 to 1."""
    return math.log(value / low) / math.log(high / low)


def _ratio_point(axis: Any, one: Contrast, colour: str) -> None:
    view, score = one.view("best"), one.boundary
    assert view is not None, one
    assert score is not None, one
    ratio = view.ratio
    left, right = score["interval"] or (score["value"], score["value"])
    low, high = (max(bound, 0.05) for bound in ratio["interval"])
    axis.errorbar(
        [score["value"]],
        [ratio["value"]],
        xerr=[[score["value"] - left], [right - score["value"]]],
        yerr=[[max(ratio["value"] - low, 0)], [max(high - ratio["value"], 0)]],
        fmt="^" if one.start.method == "slichf" else "o",
        color=colour,
        markerfacecolor=colour if not one.start.before else PAPER,
        markersize=6,
        elinewidth=0.7,
    )


def _models_legend(figure: Any, book: Book, models: list[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=MODEL_COLOUR[place % len(MODEL_COLOUR)], marker="o", linestyle="", label=book.label(model))
        for place, model in enumerate(models)
    ]
    figure.legend(handles=lines, loc="outside upper left", ncols=3, frameon=False)


def _boundary(book: Book) -> Any:
    """One panel a model; a tree of policies over rounds."""
    models = list(dict.fromkeys(policy.model for policy in book.policies))
    columns = min(3, len(models))
    figure, axes = grid(-(-len(models) // columns), columns, 2.1, sharex=False)
    panels = [axis for line in axes for axis in line]
    last = max(len(policy.sources) for policy in book.policies)
    for axis in panels[len(models) :]:
        axis.set_visible(False)
    for axis, model in zip(panels, models, strict=False):
        axis.axhline(BOUNDARY, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(book.label(model), loc="left")
        axis.set_ylim(0, 1)
        axis.set_xlim(-0.3, last + 0.3)
        axis.set_xticks(range(last + 1), ["start", *(f"round {number}" for number in range(1, last + 1))])
        for x, metric, source, x0, metric0, method in _edges(book, model):
            _node(axis, x, metric, source)
            if metric0 is not None:
                style = "--" if method == "slichf" else "-"
                axis.plot(
                    [x0, x],
                    [metric0["value"], metric["value"]],
                    style,
                    color=SOURCE_COLOUR.get(source, INK),
                    linewidth=1,
                )
    for line in axes:
        line[0].set_ylabel("boundary score")
    legend(figure)
    return figure


def _edges(book: Book, model: str) -> Iterator[tuple[float, Any, str, float, Any, str]]:
    """(x, score, source, x of the parent, its score, method) of each policy of one model."""
    keys = list(dict.fromkeys(policy.key for policy in book.policies if policy.model == model))
    scores = {key: boundary(p.metrics for p in book.policies if p.key == key) for key in keys}
    shift = {key: 0.05 * (place - (len(keys) - 1) / 2) if key[2] else 0.0 for place, key in enumerate(keys)}
    for key in keys:
        _, method, sources = key
        parent = (model, method if len(sources) > 1 else book.shared(method), sources[:-1])
        if scores[key] is None:
            continue
        before = scores.get(parent) if sources else None
        source = sources[-1] if sources else ""
        yield len(sources) + shift[key], scores[key], source, len(sources) - 1 + shift.get(parent, 0.0), before, method


def _node(axis: Any, x: float, metric: Any, source: str) -> None:
    low, high = metric["interval"] or (metric["value"], metric["value"])
    error = [[metric["value"] - low], [high - metric["value"]]]
    axis.errorbar(
        [x],
        [metric["value"]],
        yerr=error,
        fmt=SHAPE.get(source, "D"),
        color=SOURCE_COLOUR.get(source, INK),
        markersize=4.5,
    )


def grid(
    rows: int, columns: int, height: float, sharex: bool, sharey: Literal["all", "row"] = "all"
) -> tuple[Any, Any]:
    """A figure of the reports' width with `rows` x `columns` panels, each `height` inches, and the panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * rows + 0.7), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def legend(figure: Any) -> None:
    """Names the sources' colours and shapes above the panels."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=SOURCE_COLOUR[source], marker=SHAPE[source], label=f"{source}-policy data")
        for source in SOURCE_COLOUR
    ]
    figure.legend(handles=lines, loc="outside upper left", ncols=2, frameon=False)


def render(name: str, about: str, draw: Callable[[], Any]) -> str:
    """SVG text of the figure that `draw` gives: the same bytes each time, with `about` for readers who hear it."""
    import matplotlib.style

    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": f"stagealign {name}"}]):
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw().savefig(buffer, format="svg", metadata=metadata)
    return _finish(buffer.getvalue(), name, about)


def _finish(svg: str, name: str, about: str) -> str:
    """Own ids, so that two figures can stand on one page; a label for readers who hear it; a dark form."""
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
