"""`stagealign report`: results to tables, figures and pages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stagealign.base.errors import BadData
from stagealign.cli.options import DEMO, Reports, Results, ScaleKey
from stagealign.cli.output import line, wrote
from stagealign.store.files import write_text


def report(
    scale: ScaleKey = "lab",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with code 1 if reports do not match the results.")
    ] = False,
    readme: Annotated[Path | None, typer.Option(help="Also refresh the demo's table in this file.")] = None,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
) -> None:
    """Writes tables and figures from the result files alone."""
    from stagealign.grid import registry

    registry.scale(scale)
    raise typer.Exit(0 if write_report(results, reports, scale, check, readme) else 1)


def write_report(results: Path, reports: Path, scale: str, check: bool = False, readme: Path | None = None) -> bool:
    """Writes the reports and returns True; with `check`, compares them instead and returns whether they match."""
    from stagealign.report import build as reporting

    if not reporting.has_results(results, scale):
        raise BadData(f"{results / scale}: no result files; run some first: `stagealign run --scale {scale}`")
    front = _front(readme, results, reports) if readme else None
    if check:
        stale = reporting.check(results, reports, scale)
        if readme and front != readme.read_text(encoding="utf-8"):
            stale.append(str(readme))
        checked(stale)
        return not stale
    wrote(reporting.write(results, reports, scale))
    if readme and front is not None:
        write_text(readme, front)
        wrote([readme])
    return True


def _front(readme: Path, results: Path, reports: Path) -> str:
    """Text of the README with its generated parts rebuilt from the results: demo, meter, speed and fault tests."""
    from stagealign.grid.select import select
    from stagealign.report.pages.front import with_demo, with_faults, with_meter, with_speed

    text = with_demo(readme.read_text(encoding="utf-8"), results, select("lab", DEMO), reports.name)
    return with_faults(with_speed(with_meter(text, results), results), results)


def checked(stale: Sequence[str]) -> None:
    """Prints the names of reports that do not match the results."""
    for name in stale:
        line(f"not current: {name}; run `stagealign report`", "red")
    if not stale:
        line("reports match the results")
