"""`stagealign export`: a cell's policy as a folder that others can load."""

from pathlib import Path
from typing import Annotated

import typer

from stagealign.cli.options import Results, ScaleKey, is_place
from stagealign.cli.output import wrote


def export(
    cell: Annotated[str, typer.Argument(help="A cell that was run, e.g. zephyr-dpo-2off_on.")],
    to: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    seed: Annotated[int, typer.Option(help="Seed of the run.", min=0)] = 0,
    scale: ScaleKey = "lab",
    push: Annotated[
        str | None, typer.Option(help="Also upload it to this hub repository, which is created as private.")
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Exports a cell's policy: safetensors, tokenizer and a model card with its numbers."""
    from stagealign.base.errors import BadData
    from stagealign.cli import exporting, variants

    if is_place(cell):
        raise BadData(
            f"{cell}: a file or folder found; the name of a cell is expected, such as zephyr-dpo-2off_on: "
            "`stagealign list` shows them, and only the policy of a cell that was run can be exported"
        )
    named = variants.named(cell, scale, seed, results)
    wrote([exporting.export(named, seed, to, results, push=push)])
