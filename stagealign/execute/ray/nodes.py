"""Nodes of a cluster, and the check that one of them can serve each need."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stagealign.base.errors import CannotRun
from stagealign.plan.flops import GIB
from stagealign.plan.needs import Needs


@dataclass(frozen=True)
class Node:
    """Resources of one node of the cluster."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int
    """Bytes of memory that Ray may give to tasks."""
    device_memory: float | None = None
    """Bytes of its largest GPU; None if not known."""

    def holds(self, needs: Needs) -> bool:
        """Whether a task with these needs fits on the empty node."""
        enough = self.cpus >= needs.cpus and self.gpus >= needs.gpus and self.memory >= needs.memory
        return enough and not (needs.gpus and self.device_memory and self.device_memory < needs.device_memory)

    def __str__(self) -> str:
        each = f" of {self.device_memory / GIB:.0f} GiB" if self.device_memory else ""
        return f"{self.name} ({self.gpus} GPU(s){each}, {self.cpus} core(s), {self.memory / GIB:.0f} GiB of memory)"


def check_room(wanted: Mapping[str, Needs], nodes: Iterable[Node]) -> None:
    """Raises CannotRun, naming each need that no node can serve with one artifact that has it."""
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
