"""`stagealign run`: plan, check, show, carry out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagealign.cli.options import (
    Address,
    Capability,
    Expression,
    Gold,
    JudgeUrl,
    Launcher,
    Peft,
    PolicyUrl,
    Results,
    Sampler,
    ScaleKey,
    Seeds,
    Workers,
)

if TYPE_CHECKING:
    from stagealign.execute.executors import Execution
    from stagealign.execute.processes import Outcome
    from stagealign.plan.plan import Plan
    from stagealign.store.folder import Store


def run(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Seeds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built and how long it takes.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also run what the results folder holds already.")] = False,
    capability: Capability = False,
    workers: Workers = None,
    devices: Annotated[int, typer.Option(help="Processes that train a round together: GPUs, or CPU ones.", min=1)] = 1,
    sharding: Annotated[
        str | None, typer.Option(help="How they share the model: replicate, fsdp2 or zero3.", show_default="by scale")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Pairs in one forward of one process.", min=1)] = None,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory for a third more arithmetic.")
    ] = False,
    launcher: Launcher = "",
    peft: Peft = None,
    spend: Annotated[
        float | None, typer.Option(help="USD that a paid judge may cost in all; asked for where it is needed.", min=0)
    ] = None,
    sampler: Sampler = "transformers",
    policy_url: PolicyUrl = None,
    judge_url: JudgeUrl = None,
    gold: Gold = None,
    executor: Annotated[str, typer.Option(help="local: processes here; ray: a cluster (extra cluster).")] = "local",
    address: Address = None,
    results: Results = Path("results"),
) -> None:
    """Runs cells: builds what is missing, writes one result file a cell and seed."""
    from stagealign.cli.variants import Variant
    from stagealign.execute.carry_out import stands_in
    from stagealign.execute.executors import Execution
    from stagealign.grid.registry import own_seeds
    from stagealign.grid.select import select
    from stagealign.plan.plan import Wish, make_plan
    from stagealign.store.artifact import Context, Devices
    from stagealign.store.bucket import opened

    spread = Devices(devices, sharding, micro_batch, activation_checkpointing, tuple(shlex.split(launcher)))
    how = Execution(workers, spread, executor, address, spend)
    how.check()
    cells, folder = Variant(peft, sampler, policy_url, gold).cells(select(scale, k))
    store = opened(Context(spread, policy_url=policy_url, judge_url=judge_url, gold_folder=folder))
    wish = Wish(capability=capability, again=again)
    plan = make_plan(cells, own_seeds(scale, seeds), store, wish, stands_in(results))
    outcome = build(plan, store, how, results, dry_run)
    raise typer.Exit(1 if outcome.failed else 0)


def build(plan: "Plan", store: "Store", how: "Execution", results: Path, dry_run: bool = False) -> "Outcome":
    """Checks, shows and carries out a plan. Raises CannotRun before work where something is not here."""
    from dataclasses import replace

    from stagealign.cli import run_tables as show
    from stagealign.cli.output import line
    from stagealign.cli.progress import progress
    from stagealign.execute.carry_out import carry_out
    from stagealign.execute.executors import opened
    from stagealign.execute.preflight import preflight
    from stagealign.execute.processes import Outcome

    workers = preflight(plan, store, how, results)
    if how.here or dry_run or not plan.missing:
        show.plan_lines(plan, workers)
    if dry_run:
        return Outcome()
    with opened(plan, store, replace(how, workers=workers)) as crew:
        if crew.about:
            line(crew.about)
            show.plan_lines(plan, crew.slots)
        with progress(plan, crew.slots, lines=bool(crew.about)) as listener:
            outcome = carry_out(plan, store, results, crew, listener)
    show.outcome(plan, outcome, store)
    return outcome
