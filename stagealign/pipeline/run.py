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
    """Description of the round's candidates and pairs; not part of the rung's fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of a result's rung: of the policy and its scores."""
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
    """Steps by round, one per learning rate: the last round has the ladder, the others the recorded rate."""
    abilities: tuple[Artifact, ...]
    """Capability of the start and of what each round ends with at the recorded rate; empty unless requested."""

    @property
    def id(self) -> str:
        return f"{self.cell.id}-seed{self.seed}"

    @property
    def goals(self) -> list[Artifact]:
        """Artifacts from which the result is read; with their lineage they are everything to build."""
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
        artifacts: dict[str, Artifact] = {}
        for goal in self.goals:
            goal.lineage(artifacts)
        return artifacts
