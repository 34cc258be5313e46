"""A cell with one seed: its artifacts, by what they are for."""

from dataclasses import dataclass

from stagealign.base.identity import fingerprint
from stagealign.grid.cell import Cell
from stagealign.grid.spec import Source
from stagealign.store.artifact import Artifact


@dataclass(frozen=True)
class Step:
    """One round of one run at one learning rate, with what measures it."""

    number: int
    source: Source
    learning_rate: float
    start: Artifact
    pairs: Artifact
    reference: Artifact
    policy: Artifact
    scores: Artifact
    start_scores: Artifact
    data: Artifact
    """What the round's candidates and pairs are like; no rung is known by it."""

    @property
    def fingerprint(self) -> str:
        """What a result's rung is known by: the policy and what measured it."""
        return fingerprint([self.policy.fingerprint, self.scores.fingerprint])


@dataclass(frozen=True)
class Run:
    """A cell with one seed: its artifacts, by what they are for."""

    cell: Cell
    seed: int
    start: Artifact
    start_scores: Artifact
    oracle: Artifact
    gold: Artifact
    weights: Artifact
    rounds: tuple[tuple[Step, ...], ...]
    """A tuple of steps a round, one a learning rate: the last round has the ladder, the others the recorded rate."""
    abilities: tuple[Artifact, ...]
    """Capability of the start and of what each round ends with at the recorded rate; none where not asked for."""

    @property
    def id(self) -> str:
        return f"{self.cell.id}-seed{self.seed}"

    @property
    def goals(self) -> list[Artifact]:
        """What must be built for this run's result; their lineage is everything."""
        steps = [step for steps in self.rounds for step in steps]
        described = {steps[0].data.path: steps[0].data for steps in self.rounds}
        scores = (step.scores for step in steps)
        policies = (step.policy for step in steps)
        return [self.start_scores, *scores, *policies, *described.values(), *self.abilities]

    @property
    def rungs(self) -> set[str]:
        """Fingerprints of the rungs that a complete result of this run holds."""
        return {step.fingerprint for steps in self.rounds for step in steps}

    @property
    def measured(self) -> set[str]:
        """Fingerprints of the capability entries that a complete result of this run holds."""
        return {artifact.fingerprint for artifact in self.abilities}

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Everything the run is made of, by path, parents first."""
        found: dict[str, Artifact] = {}
        for goal in self.goals:
            goal.lineage(found)
        return found
