"""An artifact: what to build, from what, and where it will stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.base.identity import fingerprint, plain

LARGE = 1e9
"""Weights from which activations are recomputed, and SFT's batch is cut in parts; execution, not identity."""


MICRO_BATCH = 4
"""Most pairs in one forward of one process where nothing else is asked for."""


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
    policy_url: str | None = None
    """Of the server that samples, where one does; which engine it is is identity, where it stands is not."""
    gold: str | None = None
    """Folder of the classifier that evaluates, where it is a local one; its content is identity, its place is not."""

    @property
    def launched(self) -> bool:
        """Whether a round runs in processes of its own."""
        return self.count > 1 or self.sharding is not None or bool(self.launcher)


@dataclass(frozen=True)
class Builder:
    """What makes an artifact: its name is identity for ever, the place of its code is not."""

    name: str
    """Part of every fingerprint; never changed, wherever the code moves."""
    version: int = 1
    """Raised by hand when the output changes meaning."""
    place: str = field(default="", compare=False)
    """`module:function`, called with a `Work`, returns facts; imported only when something is built.
    Empty: the name is the place."""

    @property
    def function(self) -> str:
        """`module:function` of the code."""
        return self.place or self.name


@dataclass(frozen=True)
class Artifact:
    """A unit of cached work: what to build, from what, and where it will stand."""

    path: str
    builder: Builder
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, "Artifact"] = field(default_factory=dict)
    seconds: float = 1.0
    """Expected seconds on one core of a laptop; execution, not identity."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the content, in clear text."""
        return {
            "builder": self.builder.name,
            "version": self.builder.version,
            "params": plain(self.params),
            "inputs": {name: artifact.fingerprint for name, artifact in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

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
    devices: Devices = field(default_factory=Devices)
    """How training is spread; execution, so no builder's output may depend on it."""
    spend: float | None = None
    """USD that a judge may cost while this artifact is built; execution."""
