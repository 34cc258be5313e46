"""What a run prints: first and last lines, and the demo's table."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.output import clock, console, line
from stagealign.execute.processes import Outcome
from stagealign.grid.cell import Cell
from stagealign.pipeline.result import describe
from stagealign.plan.plan import Plan
from stagealign.report.build import SummaryRow
from stagealign.store.folder import Store


def plan_lines(made: Plan, count: int | None) -> None:
    """First lines of a run: the scale, what is shared, what is there, how long the rest takes on `count` workers."""
    scale = made.scale
    console.print(Text(f"scale {scale.key}: {scale.name}; {len(made.runs)} runs (cell x seed)"))
    if made.standing:
        console.print(Text(f"{len(made.standing)} more have their results already; `--again` runs them too"))
    if not made.runs:
        return
    shared = made.wanted - len(made.artifacts)
    console.print(
        Text(
            f"{len(made.artifacts)} artifacts ({shared} more if cells shared nothing): "
            f"{len(made.ready)} ready, {len(made.missing)} to build"
        )
    )
    if made.missing and count:
        console.print(Text(f"about {clock(made.seconds / count)} on {count} x {made.processor.name}"))


def outcome(made: Plan, done: Outcome, store: Store) -> None:
    """Last lines of a run: what was built, what was reused, what failed and why, what memory made smaller."""
    references = {item.artifact.path for item in made.by_role.get("reference", ())}
    reused = made.ready | done.found
    passes = f"reference passes: {len(references & done.built)} run, {len(references & reused)} reused"
    console.print(Text(f"built {len(done.built)}, reused {len(reused)}; {passes}"))
    for path, reason in done.failed.items():
        if path not in done.stopped:
            line(f"failed {path}: {reason}", "red")
    if done.stopped:
        console.print(Text(f"not built, as they need what failed: {len(done.stopped)}", style="red"))
    for path in sorted(done.built):
        lowered = store.facts(made.artifacts[path]).get("lowered")
        if lowered:
            line(f"{path}: {lowered}; the same global batch, the same numbers")


def summary(chosen: Sequence[Cell], rows: Sequence[SummaryRow]) -> None:
    """The demo's table."""
    films = chosen[0].scale.evaluation.test_prompts
    title = f"{describe(chosen[0])}\neffectiveness: gain in gold reward on {films} test films, with 95% intervals"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in SummaryRow.HEADINGS:
        widest = "undecided" if heading in SummaryRow.HEADINGS[-2:] else max(heading.split(), key=len)
        table.add_column(heading, min_width=len(widest))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.cells))
    console.print(table)
    console.print(Text("A stand-in at lab scale: these are not the paper's numbers."))
