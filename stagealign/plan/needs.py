"""Cores, GPUs and memory that one artifact needs, and the number of artifacts that fit into a machine at a time."""

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
    """Resources of one task on the node that it runs on."""

    cpus: int
    gpus: int
    memory: int
    """Bytes of the node's own memory."""
    device_memory: float = 0.0
    """Least bytes on one GPU, by estimate; if several GPUs share evenly, the share of one. 0 if unknown."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU(s), " if self.gpus else ""
        return f"{gpus}{self.cpus} core(s) and {self.memory / GIB:.0f} GiB of memory"


def needs_of(artifact: Artifact, scale: Scale, devices: Devices) -> Needs:
    """Resources to build `artifact`: at a scale made for GPUs one GPU, or all `devices` if it is a training round."""
    cost, trains = estimate(artifact, scale), artifact.kind.trains
    count = devices.count if trains else 1
    if not scale.on_gpus or not cost.memory:
        computes = cost.memory or cost.flops
        return Needs(count, 0, round((cost.memory + PROCESS) * count) if computes else LIGHT * count)
    shares = count if devices.sharding != "replicate" else 1
    on_gpu = 0.0 if trains and devices.launcher else cost.needed / shares  # the user's own launcher decides
    # Each process reads the weights through its node's memory, and one gathers them to write.
    return Needs(CORES_A_GPU * count, count, round((count + 1) * cost.loaded + PROCESS * count), on_gpu)


def side_by_side(wanted: Mapping[str, Needs], most: int, asked: bool) -> int:
    """Number of these artifacts, by path, that this machine's free memory can build at a time; at most `most`.

    Assumes that the largest run together. Raises CannotRun if none fits, or if the user `asked` for more than fit.
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
    """Free bytes of this machine's own memory."""
    from psutil import virtual_memory

    return int(virtual_memory().available)
