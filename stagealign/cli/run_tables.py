"""Terminal output of a run: its first and last lines, and the demo's table."""

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


def plan_lines(plan: Plan, count: int | None) -> None:
    """Prints a run's first lines: scale, artifacts shared, ready and missing, and the time on `count` workers."""
    scale = plan.scale
    console.print(Text(f"scale {scale.key}: {scale.name}; {len(plan.runs)} runs (cell x seed)"))
    if plan.standing:
        console.print(Text(f"{len(plan.standing)} more have their results already; `--again` runs them too"))
    if not plan.runs:
        return
    shared = plan.wanted - len(plan.artifacts)
    console.print(
        Text(
            f"{len(plan.artifacts)} artifacts ({shared} more if cells shared nothing): "
            f"{len(plan.ready)} ready, {len(plan.missing)} to build"
        )
    )
    if plan.missing and count:
        console.print(Text(f"about {clock(plan.seconds / count)} on {count} x {plan.processor.name}"))


def outcome(plan: Plan, done: Outcome, store: Store) -> None:
    """Prints a run's last lines: artifacts built, reused and failed with the reason, and batches lowered for memory."""
    references = {item.artifact.path for item in plan.by_role.get("reference", ())}
    reused = plan.ready | done.found
    passes = f"reference passes: {len(references & done.built)} run, {len(references & reused)} reused"
    console.print(Text(f"built {len(done.built)}, reused {len(reused)}; {passes}"))
    for path, reason in done.failed.items():
        if path not in done.stopped:
            line(f"failed {path}: {reason}", "red")
    if done.stopped:
        console.print(Text(f"not built, because an input failed: {len(done.stopped)}", style="red"))
    for path in sorted(done.built):
        lowered = store.facts(plan.artifacts[path]).get("lowered")
        if lowered:
            line(f"{path}: {lowered}; the same global batch, the same numbers")


def summary(chosen: Sequence[Cell], rows: Sequence[SummaryRow]) -> None:
    """Prints the demo's table."""
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
