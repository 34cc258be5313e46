"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Expression = Annotated[
    str, typer.Option("-k", help="Cells to choose, as in pytest: 'zephyr and not slichf'.", metavar="EXPR")
]
ScaleKey = Annotated[str, typer.Option("--scale", help="Scale: smoke, lab or paper.")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds, counted from 0; by default the scale's own.", min=1)]
Results = Annotated[Path, typer.Option(help="Folder of result files.")]
Reports = Annotated[Path, typer.Option(help="Folder for the reports.")]
Workers = Annotated[
    int | None, typer.Option(help="Artifacts built at the same time; by default as many as cores.", min=1)
]
Capability = Annotated[
    bool, typer.Option("--capability", help="Also measure the capability of policies with lm-eval (extra eval).")
]
Peft = Annotated[str | None, typer.Option(help="lora: train adapters; makes separate cells.")]
Sampler = Annotated[
    str, typer.Option(help="Sampling engine: transformers (our own sampler) or vllm; vllm makes separate cells.")
]
PolicyUrl = Annotated[
    str | None, typer.Option(help="Server that samples, and loads each policy from its folder; makes separate cells.")
]
JudgeUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server of the judge.")]
Gold = Annotated[
    str | None,
    typer.Option(help="reward:ID_OR_PATH: a one-logit classifier as the gold reward; makes separate cells."),
]
Launcher = Annotated[
    str, typer.Option(help="Your own command that starts the processes, e.g. 'torchrun --nproc-per-node 8'.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="host:port of the Ray cluster, or auto for one that runs here; else RAY_ADDRESS, else a new local Ray."
    ),
]
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".html", ".md", ".safetensors")
DEMO = "zephyr and dpo and (1off or 1on or 2off_off or 2off_on)"
"""Expression for `-k` that chooses the demo's cells."""


def is_place(name: str) -> bool:
    """True for the name of a file or folder, where a cell is a word of letters, digits, `-`, `_` and single dots."""
    return "/" in name or name.startswith((".", "~")) or Path(name).exists() or Path(name).suffix in DATA_SUFFIXES
