"""Paths of one run's artifacts, and the artifacts that all of its rounds share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagealign.base.identity import plain
from stagealign.base.kind import Kind
from stagealign.grid.cell import Cell, Scale
from stagealign.grid.preferences import Preference
from stagealign.grid.spec import Training
from stagealign.pipeline.kinds import TASKS, Task
from stagealign.store.artifact import Artifact


@dataclass(frozen=True)
class Paths:
    """A cell with one seed, and the paths of its artifacts; an artifact that cells share has one path."""

    cell: Cell
    seed: int

    @property
    def scale(self) -> Scale:
        return self.cell.scale

    @property
    def training(self) -> Training:
        return self.cell.scale.training

    @property
    def preference(self) -> Preference:
        return self.cell.scale.preference

    @property
    def task(self) -> Task:
        return TASKS[self.cell.scale.task]

    @property
    def shared(self) -> str:
        """Folder of artifacts that every cell of the scale shares."""
        return self.scale.key

    @property
    def asked(self) -> str:
        """Folder of artifacts that depend on the preference."""
        return f"{self.shared}/{self.preference.key}"

    @property
    def own(self) -> str:
        """Folder of the model's own start, whatever the preference."""
        return f"{self.shared}/{self.cell.model.key}/seed{self.seed}"

    @property
    def labels(self) -> dict[str, object]:
        """Parameters of everything that the oracle labels."""
        return {"oracle": self.preference.oracle, "sign": self.preference.sign}

    @property
    def engine(self) -> str:
        """Key of the sampler; empty for our own."""
        return self.scale.engine.key if self.scale.engine else ""


@dataclass(frozen=True)
class Layout(Paths):
    """Paths of a run, with the artifacts that all rounds share."""

    prompts: Artifact
    held_out: Artifact
    """Static candidates of the validation and test prompts."""
    oracle: Artifact
    gold: Artifact
    weights: Artifact
    start: Artifact

    def beside(self, policy: Artifact) -> str:
        """Folder of artifacts made from a policy; the starting policy has one for each preference."""
        if policy.path == self.start.path:
            return f"{self.asked}/{self.cell.model.key}/seed{self.seed}"
        return policy.folder


def make(role: str, kind: Kind, path: str, params: Mapping[str, Any], **inputs: Artifact) -> Artifact:
    """An artifact at `path`; `role` is what tables call it."""
    return Artifact(path, kind, params, inputs, role)


def trained(training: Training) -> dict[str, object]:
    """The part of the spec's training that determines one round's policy, as JSON-ready values."""
    left_out = ("pairs", "ladder", "learning_rate")
    return {name: value for name, value in plain(training).items() if name not in left_out}
