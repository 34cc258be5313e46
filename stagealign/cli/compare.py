"""`stagealign compare`: differences between two results folders, or two cells, against noise."""

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
    b: Annotated[str, typer.Argument(help="Another results folder, or another cell.")],
    scale: ScaleKey = "lab",
    results: Results = Path("results"),
) -> None:
    """Compares two results folders, or two cells; exits with code 1 on a change beyond noise or a missing policy."""
    raise typer.Exit(compared(a, b, scale, results))


def compared(a: str, b: str, scale: str, results: Path) -> int:
    """Exit code: 0 if nothing moved by more than noise and nothing is missing, else 1.

    Raises StagealignError unless `a` and `b` are two folders or two cells of the scale.
    """
    from stagealign.grid import registry
    from stagealign.report.read import compare as comparing

    places = [name for name in (a, b) if is_place(name)]
    if places:
        for name in (a, b):
            if not Path(name).is_dir():
                given = "a file" if Path(name).exists() else "no such folder"
                raise BadData(f"{name}: {given}; compare two results folders, or two cells such as zephyr-dpo-1off")
        differences = comparing.compare_folders(Path(a), Path(b), scale)
    else:
        cells = [registry.cell(name, scale).id for name in (a, b)]
        differences = comparing.compare_cells(results, scale, cells[0], cells[1])
    comparison(differences, every=not places)
    return 1 if differences.changed else 0


def comparison(differences: "ResultsComparison", every: bool = False) -> None:
    """Prints quantities that moved by more than noise, the number of the others, and policies on one side only.

    `every` also prints quantities within noise, for a comparison of one policy.
    """
    title = Text(differences.moved[0].policy) if every else None
    headings = ("quantity", "before", "after", "difference", "p")
    table = Table(*(headings if every else ("policy", *headings)), title=title, box=box.SIMPLE)
    for change in differences.moved:
        if change.more_than_noise or every:
            low, high = change.interval or (change.after - change.before,) * 2
            shown = f"{change.after - change.before:+.3f} [{low:+.3f}, {high:+.3f}] {change.unit}"
            if change.interval is None and change.before == change.after:
                shown = "the same"
            elif every:
                shown += "" if change.more_than_noise else ", within noise"
            cells = (
                change.quantity,
                f"{change.before:.3f}",
                f"{change.after:.3f}",
                Text(shown),
                f"{change.p:.3g}",
            )
            table.add_row(*(cells if every else (Text(change.policy), *cells)))
    if table.row_count:
        console.print(table)
    moved = sum(change.more_than_noise for change in differences.moved)
    same = sum(change.interval is None and change.before == change.after for change in differences.moved)
    noise = len(differences.moved) - moved - same
    console.print(
        Text(
            f"{len(differences.moved)} numbers compared: {moved} moved by more than noise (Holm over all), {noise} "
            f"within noise, {same} the same to the last digit"
        )
    )
    for side, names in (("first", differences.only_first), ("second", differences.only_second)):
        if names:
            text = f"only in the {side}, {count(len(names), 'policy')} with a seed: {listing(names, 6)}"
            console.print(Text(text, style="red" if side == "first" else ""), soft_wrap=True)
