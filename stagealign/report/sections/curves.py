"""Training curves of one row as SVG: loss and margin by step, one panel for each starting policy."""

from typing import Any

from stagealign.report.read.book import Book
from stagealign.report.read.rungs import Rung
from stagealign.report.sections.drawing import grid, legend, render, source_look
from stagealign.report.sections.words import rate

ABOUT = (
    "Loss and margin (implicit reward of chosen minus rejected, nats) by step, from each starting policy. Blue: "
    "off-policy data; orange: on-policy. The darker a line, the higher its learning rate; one line a seed."
)
QUANTITIES = {"loss": "loss", "margin": "margin, nats"}


def curves(book: Book, model: str, method: str) -> str:
    """SVG text; empty if no rung recorded a curve."""
    rungs = [r for r in book.rungs if (r.start.model, r.start.method, r.state) == (model, method, "done")]
    rungs = [rung for rung in rungs if rung.data["training"].get("curve")]
    if not rungs:
        return ""
    return render(f"curves-{model}-{method}", ABOUT, lambda: _draw(rungs))


def _draw(rungs: list[Rung]) -> Any:
    starts = list(dict.fromkeys(rung.start.name for rung in sorted(rungs, key=lambda r: r.start.before[::-1])))
    rates = sorted({rung.learning_rate for rung in rungs})
    figure, axes = grid(len(QUANTITIES), len(starts), 1.7, sharex=True, sharey="row")
    for line, (quantity, label) in zip(axes, QUANTITIES.items(), strict=True):
        line[0].set_ylabel(label)
        for axis, name in zip(line, starts, strict=True):
            for rung in (rung for rung in rungs if rung.start.name == name):
                curve = rung.data["training"]["curve"]
                strength = 0.45 + 0.55 * (rates.index(rung.learning_rate) + 1) / len(rates)
                axis.plot(
                    [entry["step"] for entry in curve],
                    [entry[quantity] for entry in curve],
                    color=source_look(rung.source)[0],
                    alpha=strength,
                    linewidth=0.9,
                )
            if quantity == "loss":
                axis.set_title(name, loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0][0].annotate(
        "learning rates " + ", ".join(map(rate, rates)), (0.02, 0.04), xycoords="axes fraction", fontsize=7
    )
    legend(figure, (rung.source for rung in rungs))
    return figure
