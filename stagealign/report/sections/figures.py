"""Gains, effectiveness ratios and boundary scores as figures."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import BOUNDARY, Contrast, Side, boundary, counted
from stagealign.report.sections.drawing import (
    FAINT,
    INK,
    MODEL_COLOUR,
    PAPER,
    grid,
    legend,
    lines_in_words,
    marks_in_words,
    method_look,
    render,
    source_look,
)
from stagealign.report.sections.rows import method_name
from stagealign.report.sections.words import rate
from stagealign.stats.statistics import Metric


def figures(book: Book, contrasts: Sequence[Contrast]) -> dict[str, str]:
    """SVG text by file name; a figure without data is left out."""
    drawn = {}
    if any(contrast.sides for contrast in contrasts):
        tried = [contrast for contrast in contrasts if contrast.sides]
        drawn["gains.svg"] = _named("gains", lambda: _gains(book, tried))
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
    "ratio has no value is not drawn. Full: round 1, hollow: later; "
    f"{marks_in_words()}.",
    "boundary.svg": "Boundary score of each policy by round, with 95% intervals and the line at 0.5. A line has "
    "the colour of the round's data (square, blue: off-policy; circle, orange: on-policy); "
    f"{lines_in_words()}.",
}


def _gains(book: Book, contrasts: list[Contrast]) -> Any:
    """Panels of gain by learning rate; rows are models and methods, columns are starts."""
    rows = list(dict.fromkeys((contrast.start.model, contrast.start.method) for contrast in contrasts))
    ranked = sorted(contrasts, key=lambda contrast: contrast.start.before[::-1])
    columns = list(dict.fromkeys(contrast.start.name for contrast in ranked))
    rates = sorted({side.learning_rate for contrast in contrasts for side in contrast.sides})
    figure, axes = grid(len(rows), len(columns), 1.6, sharex=True)
    for row, (model, method) in enumerate(rows):
        for column, name in enumerate(columns):
            axis = axes[row][column]
            here = next(
                (c for c in contrasts if (c.start.model, c.start.method, c.start.name) == (model, method, name)), None
            )
            axis.axhline(0, color=FAINT, linewidth=0.8)
            axis.set_xlim(-0.5, len(rates) - 0.5)
            axis.set_xticks(range(len(rates)), list(map(rate, rates)))
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
    legend(figure, (side.source for contrast in contrasts for side in contrast.sides))
    return figure


SIDE_PLACE = {"off": (-0.14, -7, "right"), "on": (0.14, 7, "left")}
"""Source -> shift of its points from the learning rate, then offset (points) and alignment of their numbers."""
OTHER_PLACE = (0.0, 7, "left")


def _point(axis: Any, place: int, side: Side) -> None:
    shift, offset, align = SIDE_PLACE.get(side.source, OTHER_PLACE)
    x, middle = place + shift, side.gain["value"]
    low, high = side.gain["interval"]
    colour, shape = source_look(side.source)
    axis.errorbar([x], [middle], yerr=[[middle - low], [high - middle]], fmt=shape, color=colour, markersize=5)
    if side.kl is not None:
        axis.annotate(
            f"{side.kl:.0f}", (x, middle), (offset, -3), textcoords="offset points", ha=align, fontsize=8, color=INK
        )


def _has_ratio(contrast: Contrast) -> bool:
    view = contrast.view("best")
    return contrast.boundary is not None and view is not None and view.ratio["value"] is not None


def _rule(book: Book, contrasts: list[Contrast]) -> Any:
    """Ratio against score, one point for each starting policy, coloured by model."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure, axes = grid(1, 1, 3.6, sharex=False)
    axis = axes[0][0]
    shown = [contrast for contrast in contrasts if _has_ratio(contrast)]
    models = list(dict.fromkeys(contrast.start.model for contrast in shown))
    axis.set_yscale("log")
    for contrast in shown:
        _ratio_point(axis, contrast, MODEL_COLOUR[models.index(contrast.start.model) % len(MODEL_COLOUR)])
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
    """Position of `value` on a logarithmic axis, 0 to 1."""
    return math.log(value / low) / math.log(high / low)


def _ratio_point(axis: Any, contrast: Contrast, colour: str) -> None:
    view, score = contrast.view("best"), contrast.boundary
    assert view is not None, contrast
    assert score is not None, contrast
    ratio = view.ratio
    left, right = score["interval"] or (score["value"], score["value"])
    low, high = (max(bound, 0.05) for bound in ratio["interval"])
    axis.errorbar(
        [score["value"]],
        [ratio["value"]],
        xerr=[[score["value"] - left], [right - score["value"]]],
        yerr=[[max(ratio["value"] - low, 0)], [max(high - ratio["value"], 0)]],
        fmt=method_look(contrast.start.method)[0],
        color=colour,
        markerfacecolor=colour if not contrast.start.before else PAPER,
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
    """One panel for each model with its tree of policies over rounds."""
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
        for edge in _edges(book, model):
            _node(axis, edge)
    for line in axes:
        line[0].set_ylabel("boundary score")
    legend(figure, (source for policy in book.policies for source in policy.sources))
    return figure


@dataclass(frozen=True)
class ScoreEdge:
    """One policy's boundary score, with the score of the policy that its last round started from."""

    place: float
    score: Metric
    source: str
    """Of the policy's last round; empty before round 1."""
    parent_place: float
    parent: Metric | None
    method: str


def _edges(book: Book, model: str) -> Iterator[ScoreEdge]:
    """One edge for each measured policy of one model."""
    keys = list(dict.fromkeys(policy.key for policy in book.policies if policy.model == model))
    scores = {key: boundary(p.metrics for p in book.policies if p.key == key) for key in keys}
    shift = {key: 0.05 * (place - (len(keys) - 1) / 2) if key[2] else 0.0 for place, key in enumerate(keys)}
    for key in keys:
        _, method, sources = key
        score = scores[key]
        if score is None:
            continue
        before = (model, method if len(sources) > 1 else book.shared(method), sources[:-1])
        place, parent_place = len(sources) + shift[key], len(sources) - 1 + shift.get(before, 0.0)
        source = sources[-1] if sources else ""
        yield ScoreEdge(place, score, source, parent_place, scores.get(before) if sources else None, method)


def _node(axis: Any, edge: ScoreEdge) -> None:
    """Draws a policy's score with its interval, and the line from its parent."""
    value = edge.score["value"]
    low, high = edge.score["interval"] or (value, value)
    colour, shape = source_look(edge.source)
    axis.errorbar([edge.place], [value], yerr=[[value - low], [high - value]], fmt=shape, color=colour, markersize=4.5)
    if edge.parent is not None:
        style = method_look(edge.method)[1]
        places, values = [edge.parent_place, edge.place], [edge.parent["value"], value]
        axis.plot(places, values, style, color=colour, linewidth=1)
