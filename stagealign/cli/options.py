"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Expression = Annotated[
    str, typer.Option("-k", help="Which cells, as in pytest: 'zephyr and not slichf'.", metavar="EXPR")
]
ScaleKey = Annotated[str, typer.Option("--scale", help="smoke, lab or paper.")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds, from 0; the scale's own number by default.", min=1)]
Results = Annotated[Path, typer.Option(help="Folder of result files.")]
Reports = Annotated[Path, typer.Option(help="Folder that reports are written to.")]
Workers = Annotated[int | None, typer.Option(help="Artifacts built side by side; as many as cores by default.", min=1)]
Capability = Annotated[
    bool, typer.Option("--capability", help="Also measure what policies can do besides (lm-eval; extra eval).")
]
Peft = Annotated[str | None, typer.Option(help="lora: train adapters; gives cells of their own.")]
Sampler = Annotated[
    str, typer.Option(help="What samples: transformers (our own sampler) or vllm; gives cells of their own.")
]
PolicyUrl = Annotated[str | None, typer.Option(help="Server that samples instead, loading each policy by its folder.")]
JudgeUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server of the judge.")]
Gold = Annotated[
    str | None,
    typer.Option(help="reward:ID_OR_PATH: a one-logit classifier evaluates instead; gives cells of their own."),
]
Launcher = Annotated[
    str, typer.Option(help="Your own command that starts the processes, e.g. 'torchrun --nproc-per-node 8'.")
]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster's host:port, auto for one that runs here; else RAY_ADDRESS, else a Ray of our own."),
]
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".html", ".md", ".safetensors")
DEMO = "zephyr and dpo and (1off or 1on or 2off_off or 2off_on)"
"""Cells of the demo, as `-k` takes them."""


def is_place(name: str) -> bool:
    """True for the name of a file or folder, where a cell is a word of letters, digits, `-`, `_` and single dots."""
    return "/" in name or name.startswith((".", "~")) or Path(name).exists() or Path(name).suffix in DATA_SUFFIXES
