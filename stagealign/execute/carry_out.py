"""Builds what a plan misses and writes each result as soon as it is complete, so that an interrupt costs none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stagealign.execute.processes import Crew, Outcome, execute
from stagealign.pipeline.result import result, unfinished
from stagealign.pipeline.run import Run
from stagealign.plan.plan import Plan
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.results import done_rungs, result_path, says_all, stands, write_result


class Listener(Protocol):
    """Who is told how a run goes on."""

    def heard(self, event: str, artifact: Artifact, who: str = "") -> None:
        """Hears that an artifact was `started`, `again`, `waiting`, `built`, `found` or `failed`, and by whom."""

    def wrote(self, path: Path) -> None:
        """Hears that a result was written."""


def stands_in(results: Path) -> Callable[[Run], bool]:
    """Tells of a run whether its complete result stands in the folder `results`."""
    return lambda run: stands(place(results, run), run.rungs, run.measured)


def place(results: Path, run: Run) -> Path:
    """Where the run's result stands."""
    return result_path(results, run.cell.scale.key, run.cell.id, run.seed)


def carry_out(plan: Plan, store: Store, results: Path, crew: Crew, listener: Listener) -> Outcome:
    """Has the crew build what is missing and writes one result a run; failed runs are written as failed."""
    writer = _Writer(plan, store, results, listener)

    def heard(event: str, artifact: Artifact, outcome: Outcome) -> None:
        told = outcome.waiting if event == "waiting" else outcome.places
        listener.heard(event, artifact, told.get(artifact.path, ""))
        if event not in ("started", "again", "waiting"):
            writer.finish(outcome)

    writer.finish(Outcome())
    outcome = execute(plan, store, crew, heard)
    writer.finish(outcome)
    return outcome


@dataclass
class _Writer:
    """Writes the results that are complete."""

    plan: Plan
    store: Store
    results: Path
    listener: Listener
    claimed: set[str] = field(default_factory=set)
    """Reference passes that a result counts as its own."""

    def __post_init__(self) -> None:
        self.waiting = list(self.plan.runs)

    def finish(self, outcome: Outcome) -> None:
        """Writes every run that has become complete, or that has failed."""
        ready = self.plan.ready | outcome.built | outcome.found
        left = []
        for run in self.waiting:
            goals = {goal.path for goal in run.goals}
            if goals <= ready:
                self._write(run, outcome)
            elif goals & outcome.failed.keys():
                self._write_failure(run, outcome)
            else:
                left.append(run)
        self.waiting = left

    def _write(self, run: Run, outcome: Outcome) -> None:
        fresh = outcome.built - self.claimed
        made = result(run, self.store, fresh)
        self.claimed |= outcome.built - self.claimed - fresh
        path = place(self.results, run)
        same = outcome.built.isdisjoint(run.artifacts) and stands(path, done_rungs(made), run.measured)
        if not (same and says_all(path, made)):
            self.listener.wrote(write_result(self.results, made))

    def _write_failure(self, run: Run, outcome: Outcome) -> None:
        """Writes a failed run's result, unless an earlier run of the same cell left a finished one."""
        reasons = [outcome.failed[goal.path] for goal in run.goals if goal.path in outcome.failed]
        if not place(self.results, run).exists():
            write_result(self.results, unfinished(run, "failed", reasons[0]))
