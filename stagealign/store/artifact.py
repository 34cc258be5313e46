"""An artifact: what to build, from what, and where it will stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.base.identity import fingerprint, plain
from stagealign.base.kind import Kind

LARGE = 1e9
"""Weights from which activations are recomputed, and SFT's batch is cut in parts; execution, not identity."""


MICRO_BATCH = 4
"""Most pairs in one forward of one process where nothing else is asked for."""


Identity = Mapping[str, object]
"""What determines an artifact's content, as JSON-ready values."""
Facts = Mapping[str, object]
"""What a builder tells of its output, as JSON-ready values; never identity."""


@dataclass(frozen=True)
class Devices:
    """How a round's work is spread."""

    count: int = 1
    """Processes, one a GPU; on a machine without one, CPU processes over gloo."""
    sharding: str | None = None
    """One of SHARDINGS; None takes fsdp2 on several GPUs where every layer learns, else replicate."""
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
    """What builders may use and no identity knows: no output may depend on it."""

    devices: Devices = field(default_factory=Devices)
    """How training is spread."""
    spend: float | None = None
    """USD that a judge may cost while one artifact is built; None: no paid judge."""
    policy_url: str | None = None
    """URL of the server that samples; which engine answers there is identity."""
    judge_url: str | None = None
    """URL of the server of a judge that labels; what the judge calls itself stands in the facts of its labels."""
    gold_folder: str | None = None
    """Folder of the classifier that evaluates, if it is a local one; its content is identity."""


@dataclass(frozen=True)
class Artifact:
    """A unit of cached work: what to build, from what, and where it will stand."""

    path: str
    kind: Kind
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, "Artifact"] = field(default_factory=dict)
    role: str = ""
    """What it is for, in tables: `candidates`, `pairs`, `policy`, ...; not identity."""

    @cached_property
    def identity(self) -> Identity:
        """All that determines the content, in clear text."""
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
        """Path of what stands around it."""
        return self.path.rpartition("/")[0]

    def lineage(self, found: dict[str, "Artifact"] | None = None) -> dict[str, "Artifact"]:
        """By path, all that this artifact is made from and then itself, each once, parents first; added to `found`."""
        found = {} if found is None else found
        if self.path not in found:
            for parent in self.inputs.values():
                parent.lineage(found)
            found[self.path] = self
        return found


@dataclass(frozen=True)
class Work:
    """What a builder is given."""

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    home: Path
    context: Context = field(default_factory=Context)
