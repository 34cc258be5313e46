"""`stagealign compare`: what moved between two results folders, or two cells."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from stagealign.base.errors import BadData
from stagealign.base.terminal import Text
from stagealign.cli.options import Results, ScaleKey, is_place
from stagealign.cli.output import console
from stagealign.report.sections.words import count, listing

if TYPE_CHECKING:
    from stagealign.report.read.compare import ResultsComparison


def compare(
    a: Annotated[str, typer.Argument(help="A results folder, or a cell.")],
    b: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    scale: ScaleKey = "lab",
    results: Results = Path("results"),
) -> None:
    """Shows what moved between two results folders, or all of two cells; exit code 1 where it is more than noise."""
    raise typer.Exit(compared(a, b, scale, results))


def compared(a: str, b: str, scale: str, results: Path) -> int:
    """Exit code: 0 where nothing moved by more than noise and nothing is missing, else 1.

    Raises StagealignError where `a` and `b` are neither two folders nor two cells of the scale.
    """
    from stagealign.grid import registry
    from stagealign.report.read import compare as comparing

    places = [name for name in (a, b) if is_place(name)]
    if places:
        for name in (a, b):
            if not Path(name).is_dir():
                given = "a file" if Path(name).exists() else "no such folder"
                raise BadData(f"{name}: {given}; compare two results folders, or two cells such as zephyr-dpo-1off")
        found = comparing.compare_folders(Path(a), Path(b), scale)
    else:
        cells = [registry.cell(name, scale).id for name in (a, b)]
        found = comparing.compare_cells(results, scale, cells[0], cells[1])
    comparison(found, every=not places)
    return 1 if found.changed else 0


def comparison(found: "ResultsComparison", every: bool = False) -> None:
    """Every quantity that moved by more than noise, how many did not, and what stands on one side only.

    `every`: all quantities of the one policy that was compared, those within noise too.
    """
    title = Text(found.moved[0].policy) if every else None
    headings = ("quantity", "before", "after", "difference", "p")
    table = Table(*(headings if every else ("policy", *headings)), title=title, box=box.SIMPLE)
    for one in found.moved:
        if one.more_than_noise or every:
            low, high = one.interval or (one.after - one.before,) * 2
            change = f"{one.after - one.before:+.3f} [{low:+.3f}, {high:+.3f}] {one.unit}"
            if one.interval is None and one.before == one.after:
                change = "the same"
            elif every:
                change += "" if one.more_than_noise else ", within noise"
            cells = (one.quantity, f"{one.before:.3f}", f"{one.after:.3f}", Text(change), f"{one.p:.3g}")
            table.add_row(*(cells if every else (Text(one.policy), *cells)))
    if table.row_count:
        console.print(table)
    moved = sum(one.more_than_noise for one in found.moved)
    same = sum(one.interval is None and one.before == one.after for one in found.moved)
    noise = len(found.moved) - moved - same
    console.print(
        Text(
            f"{len(found.moved)} numbers compared: {moved} moved by more than noise (Holm over all), {noise} "
            f"within noise, {same} the same to the last digit"
        )
    )
    for side, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            text = f"only in the {side}, {count(len(names), 'policy')} with a seed: {listing(names, 6)}"
            console.print(Text(text, style="red" if side == "first" else ""), soft_wrap=True)
