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


DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be built and how long it takes.")]
Again = Annotated[bool, typer.Option("--again", help="Also run what has its results already.")]
DeviceCount = Annotated[
    int, typer.Option(help="Processes that train one round together, each on its own GPU or on the CPU.", min=1)
]
Sharding = Annotated[
    str | None,
    typer.Option(help="How these processes share the model: replicate, fsdp2 or zero3.", show_default="by scale"),
]
MicroBatch = Annotated[int | None, typer.Option(help="Pairs in one forward pass of one process.", min=1)]
ActivationCheckpointing = Annotated[
    bool, typer.Option("--activation-checkpointing", help="Recompute activations: less memory, a third more compute.")
]
Spend = Annotated[
    float | None, typer.Option(help="Most USD that a paid judge may cost in all; required if there is one.", min=0)
]
ExecutorKey = Annotated[str, typer.Option(help="local: processes on this machine; ray: a cluster (extra cluster).")]


def run(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Seeds = None,
    dry_run: DryRun = False,
    again: Again = False,
    capability: Capability = False,
    workers: Workers = None,
    devices: DeviceCount = 1,
    sharding: Sharding = None,
    micro_batch: MicroBatch = None,
    activation_checkpointing: ActivationCheckpointing = False,
    launcher: Launcher = "",
    peft: Peft = None,
    spend: Spend = None,
    sampler: Sampler = "transformers",
    policy_url: PolicyUrl = None,
    judge_url: JudgeUrl = None,
    gold: Gold = None,
    executor: ExecutorKey = "local",
    address: Address = None,
    results: Results = Path("results"),
) -> None:
    """Runs cells: builds what is missing and writes one result file for each cell and seed."""
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
    """Checks, shows and carries out a plan. Raises CannotRun, before any work, if something is missing."""
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
