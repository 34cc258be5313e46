"""`stagealign list`: the cells of a scale, what each model starts from, and what is assumed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.options import Expression, ScaleKey
from stagealign.cli.output import console

if TYPE_CHECKING:
    from stagealign.grid.cell import Cell, Scale

UNPINNED = "not pinned: the first fetch resolves it and its record keeps the commit"


def list_cells(k: Expression = "", scale: ScaleKey = "lab") -> None:
    """Shows the cells of a scale and what each model starts from."""
    from stagealign.grid import registry
    from stagealign.grid.select import select

    cells(registry.scale(scale), select(scale, k))


def cells(scale: "Scale", chosen: "Sequence[Cell]") -> None:
    """Prints the cells by model with what each model starts from, the extra cells, and assumed values."""
    from stagealign.grid import registry
    from stagealign.pipeline.result import describe

    console.print(Text(f"scale {scale.key}: {scale.name}; {len(chosen)} cells"))
    starts = Table("model", "starts from", "methods", "cells", title=None)
    for key in dict.fromkeys(cell.model.key for cell in chosen):
        mine = [cell for cell in chosen if cell.model.key == key]
        ids = Text("\n".join(f"{cell.id} (extra)" if cell.extra else cell.id for cell in mine))
        methods = ", ".join(dict.fromkeys(cell.method.name for cell in mine))
        starts.add_row(mine[0].model.name, Text(describe(mine[0])), methods, ids)
    console.print(starts)
    others = [cell for cell in registry.cells(scale.key, extras=True) if cell.extra and cell not in chosen]
    if others:
        groups = {
            "their schedules": dict.fromkeys(c.schedule for c in others if any(source.extra for source in c.sources)),
            "variants in what was not published": dict.fromkeys(c.method.key for c in others if c.method.variant_of),
            "beyond the paper": dict.fromkeys(f"{c.model.key}-{c.method.key}" for c in others if c.beyond_paper),
        }
        example = others[0].extra_words[0][0]
        console.print(Text(f"{len(others)} extra cells run only if they are named, as in `-k {example}`"))
        for name, words in groups.items():
            if words:
                console.print(Text(f"{name}: {', '.join(words)}"), soft_wrap=True)
    assumed = Table("assumed, not published", "value", "taken from")
    for place, value, recipe in assumptions(chosen):
        assumed.add_row(place, value, recipe)
    if assumed.row_count:
        console.print(assumed)


def assumptions(chosen: "Sequence[Cell]") -> list[tuple[str, str, str]]:
    """(field, value, recipe) of every assumed value in these cells, each once, and of weights without a revision."""
    by_field = {}
    for cell in chosen:
        specs = {
            cell.model.key: cell.checkpoint,
            f"{cell.model.key}.sft": cell.checkpoint.sft,
            cell.method.key: cell.method,
            "training": cell.scale.training,
            "evaluation": cell.scale.evaluation,
            "scale": cell.scale,
        }
        for name, spec in specs.items():
            for field, recipe in (spec.assumed if spec else {}).items():
                value = getattr(spec, field)
                shown = ", ".join(measure.task for measure in value) if field == "capability" else str(value)
                by_field[f"{name}.{field}"] = (shown, recipe)
        if not cell.checkpoint.pinned:
            by_field[f"{cell.model.key}.revision"] = ("none yet", UNPINNED)
        if cell.scale.oracle_weights:
            by_field["oracle.revision"] = ("none yet", UNPINNED)
    return [(place, value, recipe) for place, (value, recipe) in by_field.items()]
