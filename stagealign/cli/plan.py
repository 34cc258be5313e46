"""`stagealign plan`: what would be built, why, at what cost, and whether this machine can build it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.list import UNPINNED
from stagealign.cli.options import (
    Capability,
    Expression,
    Gold,
    Peft,
    PolicyUrl,
    Results,
    Sampler,
    ScaleKey,
    Seeds,
)
from stagealign.cli.output import check_folder, clock, console, write_json, wrote
from stagealign.report.sections.words import brief, listing

if TYPE_CHECKING:
    from stagealign.plan.flops import Processor
    from stagealign.plan.plan import Plan, PricedArtifact


def plan(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Seeds = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU to estimate for: h200, h100, a100, l40s, rtx4090 or cpu; by default the scale's own."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also plan runs that have their results already.")] = False,
    capability: Capability = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write every artifact and the totals here; - is standard output.")
    ] = None,
    peft: Peft = None,
    sampler: Sampler = "transformers",
    policy_url: PolicyUrl = None,
    gold: Gold = None,
    docs: Annotated[Path | None, typer.Option(help="Only refresh the paper's cost tables in this file.")] = None,
    results: Results = Path("results"),
) -> None:
    """Shows what would be built, why, at what cost, and whether this machine can build it."""
    from stagealign.cli.variants import Variant
    from stagealign.execute.carry_out import stands_in
    from stagealign.grid import registry
    from stagealign.grid.select import select
    from stagealign.plan.machine import lacking
    from stagealign.plan.plan import Wish, make_plan, processor
    from stagealign.store.bucket import opened

    if docs:
        from stagealign.plan.scale_docs import with_scale
        from stagealign.store.files import write_text

        write_text(docs, with_scale(docs.read_text(encoding="utf-8")))
        wrote([docs])
        return
    check_folder(json_file)
    on = processor(gpu, registry.scale(scale))
    cells, _ = Variant(peft, sampler, policy_url, gold).cells(select(scale, k))
    store, wish = opened(), Wish(capability=capability, again=again)
    priced = make_plan(cells, registry.own_seeds(scale, seeds), store, wish, stands_in(results), on)
    lacks = lacking(priced, store.home)
    write_json(json_file, priced.plain(lacks))
    if json_file != "-":
        priced_plan(priced, lacks)


def priced_plan(priced: "Plan", lacks: Sequence[str]) -> None:
    """Prints what would be built with its cost, by role, then why, what sharing saves, and what this machine lacks."""
    from stagealign.plan.plan import CHANGED, READY
    from stagealign.plan.remarks import remarks

    totals, on = priced.totals, priced.processor
    console.print(Text(f"scale {priced.scale.key}: {priced.scale.name}; {len(priced.runs)} runs (cell x seed)"))
    if priced.standing:
        console.print(Text(f"{len(priced.standing)} more have their results already; `--again` plans them too"))
    if not priced.items:
        return
    time_heading = "GPU h" if on.gpu else "CPU time"
    table = Table(title=f"to build, on {on.name}; peak memory and disk in GiB", box=box.SIMPLE, collapse_padding=True)
    for heading in ("artifacts", "ready", "build", "tokens", "FLOPs", time_heading, "memory", "disk", "judge $"):
        table.add_column(heading, justify="left" if heading == "artifacts" else "right", no_wrap=True)
    for kind, items in priced.by_role.items():
        left = [item for item in items if item.state != READY]
        table.add_row(kind, str(len(items) - len(left)), *_costs(left, on))
    table.add_section()
    table.add_row("all", str(totals.ready), *_costs(priced.to_build, on))
    console.print(table)
    saved = f"{len(priced.items)} artifacts; {priced.wanted - len(priced.items)} more if cells shared nothing"
    if priced.unshared_seconds:
        whole = sum(item.seconds for item in priced.items)
        saved += f", {100 * (1 - whole / priced.unshared_seconds):.0f}% of the time saved"
    console.print(Text(saved), soft_wrap=True)
    reasons = Counter(item.reason for item in priced.to_build)
    console.print(Text("why: " + ("; ".join(f"{n} {why}" for why, n in reasons.most_common()) or "nothing to build")),
                  soft_wrap=True)  # fmt: skip
    for item in priced.items:
        if item.state == CHANGED:
            console.print(
                Text(f"{item.artifact.path}: {item.reason}; `run` stops there until it is removed"), soft_wrap=True
            )
    for source, commit in priced.revisions.items():
        console.print(Text(f"{source}: {f'its record says commit {commit}' if commit else UNPINNED}"), soft_wrap=True)
    if on.gpu:
        dollars = f"{totals.gpu_dollars:,.0f} dollars at {on.dollars:g} an hour"
        shares = listing([f"{kind} {share:.2f}" for kind, share in on.reached.items()], 9)
        console.print(Text(f"assumed: {dollars}; shares of peak {shares}"), soft_wrap=True)
    for remark in remarks(priced.to_build):
        console.print(Text(remark), soft_wrap=True)
    for lack in lacks:
        console.print(Text(f"this machine lacks {lack}", style="red"), soft_wrap=True)
    if not lacks:
        console.print(Text("this machine has what it needs"))


def _costs(items: Sequence["PricedArtifact"], on: "Processor") -> list[str]:
    """Table cells: number, tokens, FLOPs, time, peak memory, disk and judge dollars of these artifacts."""
    seconds = sum(item.seconds for item in items)
    dollars = sum(item.cost.judge_dollars for item in items)
    unknown = " + ?" if dollars else "?"
    judge = (f"{dollars:.0f}" if dollars else "") + (unknown if any(item.cost.unpriced for item in items) else "")
    return [
        str(len(items)),
        brief(sum(item.cost.tokens for item in items)),
        f"{sum(sum(item.cost.flops.values()) for item in items):.1e}".replace("e+", "e").replace("0.0e00", "0"),
        f"{seconds / 3600:,.1f}" if on.gpu else clock(seconds),
        f"{max((item.cost.memory for item in items), default=0.0) / 2**30:.1f}",
        f"{sum(item.cost.disk for item in items) / 2**30:,.1f}",
        judge,
    ]
