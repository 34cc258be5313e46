"""Who builds: one row each."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.base.kind import code_at
from stagealign.store.artifact import Devices

if TYPE_CHECKING:
    from stagealign.execute.processes import Crew
    from stagealign.plan.plan import Plan
    from stagealign.store.folder import Store


@dataclass(frozen=True)
class Executor:
    """One way to build what a plan misses."""

    key: str
    opens: str
    """`module:function`, called with (plan, store, how); a context manager that gives the `Crew`."""
    here: bool = False
    """Whether this machine builds, so that its GPUs and memory are what counts."""


EXECUTORS = {
    row.key: row
    for row in (
        Executor("local", "stagealign.execute.processes:opened", here=True),
        Executor("ray", "stagealign.execute.ray.crew:opened"),
    )
}
"""By key. To add one: `docs/extending.md`."""


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: none of it changes what is built."""

    workers: int | None = None
    """Artifacts built side by side; None takes what fits."""
    devices: Devices = field(default_factory=Devices)
    executor: str = "local"
    """A key of `EXECUTORS`."""
    address: str | None = None
    """Of a Ray cluster."""
    spend: float | None = None
    """What a paid judge may cost in all, in USD."""

    @property
    def here(self) -> bool:
        """Whether this machine builds."""
        return EXECUTORS[self.executor].here

    def check(self) -> None:
        """Raises UnknownName for an executor that there is none of, StagealignError for an address nobody would ask."""
        if self.executor not in EXECUTORS:
            raise UnknownName("--executor", self.executor, EXECUTORS)
        if self.here and self.address is not None:
            raise StagealignError(f"--address {self.address}: is that of a Ray cluster; add --executor ray")


def opened(plan: "Plan", store: "Store", how: Execution) -> "AbstractContextManager[Crew]":
    """The crew that builds the plan; a plan without work needs no cluster."""
    row = EXECUTORS[how.executor if plan.missing else "local"]
    crew: AbstractContextManager[Crew] = code_at(row.opens)(plan, store, how)
    return crew
