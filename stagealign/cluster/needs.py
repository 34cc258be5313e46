"""What building one artifact needs of a node: cores, GPUs, memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from stagealign.cost import GIB
from stagealign.devices import Devices
from stagealign.errors import CannotRun
from stagealign.estimate import Estimate, estimate, weights_of
from stagealign.spec import Scale
from stagealign.store import Artifact

CORES_A_GPU = 2
"""Cores that feed one GPU; assumed."""
PROCESS = 2 * GIB
"""Memory of a process that computes with torch, beside weights and activations; the lab's records have 1.5 to 1.9."""
LIGHT = GIB
"""Memory of a process that counts and copies; the lab's records have 0.3 to 0.6 GiB."""


@dataclass(frozen=True)
class Needs:
    """What a task asks of the one node that it runs on."""

    cpus: int
    gpus: int
    memory: int
    """Bytes of the node's own memory."""
    device_memory: float = 0.0
    """Bytes on one GPU, where one holds everything; 0 where that is not known."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU(s), " if self.gpus else ""
        return f"{gpus}{self.cpus} core(s) and {self.memory / GIB:.0f} GiB of memory"


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int
    """Bytes that Ray may give to tasks."""
    device_memory: float | None = None
    """Bytes of its largest GPU; None where the driver shows none."""

    def holds(self, needs: Needs) -> bool:
        """Whether the task could run here, were the node empty."""
        enough = self.cpus >= needs.cpus and self.gpus >= needs.gpus and self.memory >= needs.memory
        return enough and not (needs.gpus and self.device_memory and self.device_memory < needs.device_memory)

    def __str__(self) -> str:
        each = f" of {self.device_memory / GIB:.0f} GiB" if self.device_memory else ""
        return f"{self.name} ({self.gpus} GPU(s){each}, {self.cpus} core(s), {self.memory / GIB:.0f} GiB of memory)"


def needs_of(artifact: Artifact, scale: Scale, devices: Devices) -> Needs:
    """What building `artifact` needs: GPUs at the scale that is made for them, and a round as many as its devices."""
    cost = _cost(artifact, scale)
    trains = artifact.builder.function.endswith(":build_policy")
    count = devices.count if trains else 1
    if scale.key != "paper" or not cost.memory:
        computes = cost.memory or cost.flops
        return Needs(count, 0, round(cost.memory + PROCESS * count) if computes else LIGHT * count)
    whole = cost.memory if not (trains and devices.launched) else 0.0
    # Each process reads the weights through its node's memory, and one gathers them to write.
    return Needs(CORES_A_GPU * count, count, round((count + 1) * cost.loaded + PROCESS * count), whole)


def _cost(artifact: Artifact, scale: Scale) -> Estimate:
    """The plan's estimate; lm-eval, which it has no formula for, reads the policy and holds as much again."""
    cost = estimate(artifact, scale.key)
    if artifact.builder.function != "stagealign.capability:measure":
        return cost
    lm = weights_of(artifact, scale.key)
    return replace(cost, loaded=lm.bytes, memory=2 * lm.bytes) if lm else cost


def check_room(wanted: Mapping[str, Needs], nodes: Iterable[Node]) -> None:
    """Raises CannotRun, naming each kind of need with an artifact that has it, where no node could ever serve it."""
    nodes = list(nodes)
    lacking = {
        needs: path for path, needs in reversed(list(wanted.items())) if not any(node.holds(needs) for node in nodes)
    }
    if not lacking:
        return
    lines = [f"  - {path}: needs {_words(needs)} on one node" for needs, path in lacking.items()]
    there = "\n".join(f"  - {node}" for node in nodes)
    raise CannotRun(
        "--executor ray: no node of the cluster can build\n"
        + "\n".join(lines)
        + f"\nIts {len(nodes)} nodes are\n{there}\nAdd a node that can (`ray start` with `--num-gpus`, `--num-cpus`, "
        "`--memory`), or spread a round with `--devices N`"
    )


def _words(needs: Needs) -> str:
    device = f", {needs.device_memory / GIB:.0f} GiB on its GPU" if needs.device_memory else ""
    return f"{needs}{device}"
