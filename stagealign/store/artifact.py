"""An artifact (a unit of cached work), its identity, and the arguments of its builder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from stagealign.base.identity import fingerprint, plain
from stagealign.base.kind import Kind

Facts = Mapping[str, object]
"""Report of a builder about its output, as JSON-ready values; never identity."""


Identity = Mapping[str, object]
"""Values that identify something, JSON-ready."""


class ArtifactIdentity(TypedDict):
    """Values that determine an artifact's content, JSON-ready."""

    builder: str
    version: int
    params: Mapping[str, object]
    inputs: Mapping[str, str]
    """Fingerprint of each input, by its name."""


@dataclass(frozen=True)
class Devices:
    """Spread of a round's training over processes."""

    count: int = 1
    """Processes, one per GPU; on a machine without GPUs, CPU processes over gloo."""
    sharding: str | None = None
    """One of SHARDINGS; None takes fsdp2 on several GPUs if every layer is trained, else replicate."""
    micro_batch: int | None = None
    """Pairs in one forward of one process; None takes what fits, at most MICRO_BATCH."""
    activation_checkpointing: bool = False
    launcher: tuple[str, ...] = ()
    """The user's own command that starts the processes, such as `torchrun --nproc-per-node 8`."""

    @property
    def launched(self) -> bool:
        """Whether a round runs in processes of its own."""
        return self.count > 1 or self.sharding is not None or bool(self.launcher)


@dataclass(frozen=True)
class Context:
    """Settings of builders that are not identity: no output may depend on them."""

    devices: Devices = field(default_factory=Devices)
    """Spread of training over processes."""
    spend: float | None = None
    """Maximum USD that a judge may cost while one artifact is built; None: no paid judge."""
    policy_url: str | None = None
    """URL of the server that samples; the engine behind it is identity."""
    judge_url: str | None = None
    """URL of the server of a judge that labels; the judge's own name is recorded in the facts of its labels."""
    gold_folder: str | None = None
    """Folder of the classifier that evaluates, if it is a local one; its content is identity."""


@dataclass(frozen=True)
class Artifact:
    """A unit of cached work: its builder, parameters and inputs, and the path of its folder."""

    path: str
    kind: Kind
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, "Artifact"] = field(default_factory=dict)
    role: str = ""
    """Its purpose, in tables: `candidates`, `pairs`, `policy`, ...; not identity."""

    @cached_property
    def identity(self) -> ArtifactIdentity:
        """Everything that determines the content, in clear text."""
        return {
            "builder": self.kind.name,
            "version": self.kind.version,
            "params": plain(self.params),
            "inputs": {name: artifact.fingerprint for name, artifact in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def folder(self) -> str:
        """Path of the parent folder."""
        return self.path.rpartition("/")[0]

    def lineage(self, collected: dict[str, "Artifact"] | None = None) -> dict[str, "Artifact"]:
        """Ancestors of this artifact and the artifact itself, by path, parents first; adds them to `collected`."""
        collected = {} if collected is None else collected
        if self.path not in collected:
            for parent in self.inputs.values():
                parent.lineage(collected)
            collected[self.path] = self
        return collected


@dataclass(frozen=True)
class Work:
    """Arguments of a builder."""

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    home: Path
    context: Context = field(default_factory=Context)
