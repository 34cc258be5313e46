"""The grid: models x methods x schedules at three scales. A new entry is one line.

What the paper did not publish is marked in `assumed`, with the recipe it is taken from.
"""

from typing import TypeVar

from stagealign.base.errors import UnknownName
from stagealign.grid.cell import Cell, Scale
from stagealign.grid.methods import METHODS
from stagealign.grid.models import CHECKPOINTS, MODELS
from stagealign.grid.scales import SCALES
from stagealign.grid.sources import SCHEDULES, SOURCES

Value = TypeVar("Value")


def scale(key: str) -> Scale:
    """The scale called `key`. Raises UnknownName."""
    return _known("scale", key, SCALES)


def own_seeds(scale_key: str, count: int | None) -> tuple[int, ...]:
    """The first `count` seeds; the scale's own if `count` is None."""
    return scale(scale_key).seeds if count is None else tuple(range(count))


def cells(scale_key: str, extras: bool = False) -> list[Cell]:
    """Every cell of one scale's grid, in the paper's order of models, methods and schedules; `extras` adds the others.

    Extra cells have a source that samples from one model for all others; or a method on a model that the authors left
    out; or a variant of a method in an unpublished value.
    """
    chosen = scale(scale_key)
    every = [
        Cell(
            MODELS[model],
            CHECKPOINTS[scale_key][model],
            method,
            schedule,
            tuple(SOURCES[source] for source in sources),
            chosen,
            beyond_paper=not chosen.plumbing and model not in method.run_by_authors_on,
        )
        for model in MODELS
        if model in CHECKPOINTS[scale_key]
        for method in METHODS[scale_key].values()
        for schedule, sources in SCHEDULES.items()
    ]
    return [cell for cell in every if _makes_sense(cell) and (extras or not cell.extra)]


def _makes_sense(cell: Cell) -> bool:
    """Whether all writers of this cell's candidates are other models of the scale, and at most one thing is extra.

    False for a variant of the reference with one round, where it equals its method.
    """
    writers = {source.sampled_from for source in cell.sources if source.sampled_from}
    more = bool(writers) + bool(cell.method.variant_of) + cell.beyond_paper
    if cell.method.reference != "round" and len(cell.sources) == 1:
        return False
    return more < 2 and cell.model.key not in writers and writers <= CHECKPOINTS[cell.scale.key].keys()


def cell(cell_id: str, scale_key: str = "lab") -> Cell:
    """The cell called `cell_id`. Raises UnknownName, which names the part that is wrong."""
    known = {known_cell.id: known_cell for known_cell in cells(scale_key, extras=True)}
    if cell_id not in known:
        parts = [*cell_id.split("-"), "", ""]
        _known("model", parts[0], MODELS)
        _known("method", parts[1], METHODS[scale_key])
        _known("schedule", parts[2], SCHEDULES)
    return _known("cell", cell_id, known)


def _known(kind: str, key: str, values: dict[str, Value]) -> Value:
    if key not in values:
        raise UnknownName(kind, key, values)
    return values[key]
