"""Carries out a plan: builds what is missing and writes each result as soon as it is complete.

An interrupt therefore loses no complete result.
"""

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
    """Receiver of a run's events, such as a progress bar."""

    def heard(self, event: str, artifact: Artifact, who: str = "") -> None:
        """Receives an event of an artifact and the process that it is about.

        Events: `started`; `again`, by another process after the first was lost; `waiting` for another process; `built`;
        `found`, built by another process; `failed`.
        """

    def wrote(self, path: Path) -> None:
        """Receives the path of a written result."""


def stands_in(results: Path) -> Callable[[Run], bool]:
    """Predicate of runs: whether the folder `results` holds the run's complete result."""
    return lambda run: stands(place(results, run), run.rungs, run.measured)


def place(results: Path, run: Run) -> Path:
    """Path of the run's result file."""
    return result_path(results, run.cell.scale.key, run.cell.id, run.seed)


def carry_out(plan: Plan, store: Store, results: Path, crew: Crew, listener: Listener) -> Outcome:
    """Has the crew build what is missing, and writes one result for each run, failed runs included."""
    writer = _Writer(plan, store, results, listener)

    def heard(event: str, artifact: Artifact, outcome: Outcome) -> None:
        processes = outcome.waiting if event == "waiting" else outcome.places
        listener.heard(event, artifact, processes.get(artifact.path, ""))
        if event not in ("started", "again", "waiting"):
            writer.finish(outcome)

    writer.finish(Outcome())
    outcome = execute(plan, store, crew, heard)
    writer.finish(outcome)
    return outcome


@dataclass
class _Writer:
    """Writer of results as they become complete."""

    plan: Plan
    store: Store
    results: Path
    listener: Listener
    claimed: set[str] = field(default_factory=set)
    """Paths of reference passes that a written result has counted as computed."""

    def __post_init__(self) -> None:
        self.waiting = list(self.plan.runs)

    def finish(self, outcome: Outcome) -> None:
        """Writes the result of every waiting run that is now complete or failed."""
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
        complete = result(run, self.store, fresh)
        self.claimed |= outcome.built - self.claimed - fresh
        path = place(self.results, run)
        same = outcome.built.isdisjoint(run.artifacts) and stands(path, done_rungs(complete), run.measured)
        if not (same and says_all(path, complete)):
            self.listener.wrote(write_result(self.results, complete))

    def _write_failure(self, run: Run, outcome: Outcome) -> None:
        """Writes a failed run's result, unless the run has a result already."""
        reasons = [outcome.failed[goal.path] for goal in run.goals if goal.path in outcome.failed]
        if not place(self.results, run).exists():
            write_result(self.results, unfinished(run, "failed", reasons[0]))
