"""What building one artifact needs of a machine: cores, GPUs, memory; and how many fit into it side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from stagealign.base.errors import CannotRun
from stagealign.grid.cell import Scale
from stagealign.plan.flops import GIB
from stagealign.plan.price import estimate
from stagealign.store.artifact import Artifact, Devices

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
    """Bytes on one GPU by estimate, at least: of what several share evenly only the share; 0 where nothing is known."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU(s), " if self.gpus else ""
        return f"{gpus}{self.cpus} core(s) and {self.memory / GIB:.0f} GiB of memory"


def needs_of(artifact: Artifact, scale: Scale, devices: Devices) -> Needs:
    """What building `artifact` needs: GPUs at a scale that is made for them, and a round as many as its devices."""
    cost, trains = estimate(artifact, scale), artifact.kind.trains
    count = devices.count if trains else 1
    if not scale.on_gpus or not cost.memory:
        computes = cost.memory or cost.flops
        return Needs(count, 0, round((cost.memory + PROCESS) * count) if computes else LIGHT * count)
    shares = count if devices.sharding != "replicate" else 1
    on_gpu = 0.0 if trains and devices.launcher else cost.memory / shares  # a launcher of one's own: who knows
    # Each process reads the weights through its node's memory, and one gathers them to write.
    return Needs(CORES_A_GPU * count, count, round((count + 1) * cost.loaded + PROCESS * count), on_gpu)


def side_by_side(wanted: Mapping[str, Needs], most: int, asked: bool) -> int:
    """How many of these artifacts, by path, may be built at a time within this machine's free memory; at most `most`.

    The largest are taken to meet. Raises CannotRun where not even one fits, or fewer than were `asked` for.
    """
    free = free_memory()
    largest = sorted(wanted, key=lambda path: -wanted[path].memory)[:most]
    together = list(accumulate(wanted[path].memory for path in largest))
    count = sum(memory <= free for memory in together)
    if count == len(largest) or (count and not asked):
        return count
    what, fix = f"{len(largest)} artifacts side by side", f"use --workers {count}"
    if not count:
        what, fix = largest[0], "end other programs, or use another machine"
    needed = together[-1 if count else 0] / GIB
    raise CannotRun(f"memory: {what} would take about {needed:.1f} GiB, {free / GIB:.1f} GiB are free; {fix}")


def free_memory() -> int:
    """Bytes of this machine's own memory that programs could still have."""
    from psutil import virtual_memory

    return int(virtual_memory().available)
