"""The command line: parses, calls, prints; no logic."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stagealign.errors import StagealignError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which data does a policy need next, off-policy or on-policy? Reproduces arXiv 2508.10530.",
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Expression = Annotated[
    str, typer.Option("-k", help="Which cells, as in pytest: 'zephyr and not slichf'.", metavar="EXPR")
]
ScaleKey = Annotated[str, typer.Option("--scale", help="smoke, lab or paper.")]
Results = Annotated[Path, typer.Option(help="Folder of result files.")]
Reports = Annotated[Path, typer.Option(help="Folder that reports are written to.")]
Workers = Annotated[int | None, typer.Option(help="Artifacts built side by side; as many as cores by default.", min=1)]


@app.command("list")
def list_cells(k: Expression = "", scale: ScaleKey = "lab") -> None:
    """Shows the cells of a scale and what each model starts from."""
    from stagealign import registry, show

    show.cells(registry.scale(scale), registry.select(scale, k))


@app.command()
def run(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds, from 0; the scale's own number by default.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built and how long it takes.")] = False,
    workers: Workers = None,
    results: Results = Path("results"),
) -> None:
    """Runs cells: builds what is missing, writes one result file a cell and seed."""
    from stagealign import registry, runs

    chosen = registry.scale(scale)
    cells = registry.select(scale, k)
    outcome = runs.run(chosen, cells, chosen.seeds if seeds is None else tuple(range(seeds)), results, workers, dry_run)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def demo(workers: Workers = None, results: Results = Path("results"), reports: Reports = Path("reports")) -> None:
    """Runs the lab's demo row: one stand-in, both sources in two rounds, one learning rate each."""
    from stagealign import runs

    outcome = runs.demo(results, reports, workers)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def report(
    scale: ScaleKey = "lab",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where reports do not match results.")
    ] = False,
    readme: Annotated[Path | None, typer.Option(help="Also refresh the demo's table in this file.")] = None,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
) -> None:
    """Writes tables and figures from the result files, and from nothing else."""
    from stagealign import registry, runs

    registry.scale(scale)
    raise typer.Exit(runs.report(results, reports, scale, check, readme))


@app.command()
def fetch() -> None:
    """Downloads the lab's assets by exact version and hash into the cache, so that later runs need no network."""
    from stagealign import runs

    runs.fetch()


def main() -> None:
    """Entry point: a user's mistake is one clear message, an interrupt keeps what is built."""
    code: int | None = INTERRUPTED
    try:
        code = app(standalone_mode=False)  # a command's exit code comes back as a value, an interrupt's too
    except StagealignError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show() if hasattr(error, "show") else _fail(str(error), 2)
            sys.exit(getattr(error, "exit_code", 2))
        raise
    if code == INTERRUPTED:
        _fail("interrupted; all that is built stays, the same command continues", INTERRUPTED)
    sys.exit(code)


def _fail(message: str, code: int) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text("stagealign: ", style="bold red") + Text(message), soft_wrap=True)
    sys.exit(code)
