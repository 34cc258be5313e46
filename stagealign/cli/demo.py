"""`stagealign demo`: the lab's demo row, its report, and its table."""

from pathlib import Path

import typer

from stagealign.cli.options import DEMO, Reports, Results, Workers


def demo(workers: Workers = None, results: Results = Path("results"), reports: Reports = Path("reports")) -> None:
    """Runs the lab's demo row: one stand-in, both sources in two rounds, one learning rate each."""
    from stagealign.cli.fetch import fetch
    from stagealign.cli.output import where
    from stagealign.cli.report import write_report
    from stagealign.cli.run import build
    from stagealign.cli.run_tables import summary
    from stagealign.execute.executors import Execution
    from stagealign.grid.select import select
    from stagealign.plan.plan import Wish, make_plan
    from stagealign.report.build import summary_rows
    from stagealign.store.bucket import opened

    cells, store = select("lab", DEMO), opened()
    plan = make_plan(cells, (0,), store, Wish(demo=True))
    if plan.missing:
        fetch()
    outcome = build(plan, store, Execution(workers), results)
    if not outcome.failed:
        write_report(results, reports, "lab")
        summary(cells, summary_rows(results, cells))
        where(reports / "index.html")
    raise typer.Exit(1 if outcome.failed else 0)
