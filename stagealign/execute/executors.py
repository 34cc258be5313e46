"""Executors: one row for each way to build what a plan misses."""

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
    """`module:function`, called with (plan, store, how); returns a context manager that yields the `Crew`."""
    here: bool = False
    """Whether this machine builds, so that its own GPUs and memory must suffice."""


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
    """Options of execution; none of them changes what is built."""

    workers: int | None = None
    """Largest number of artifacts built at the same time; None: as many as fit."""
    devices: Devices = field(default_factory=Devices)
    executor: str = "local"
    """A key of `EXECUTORS`."""
    address: str | None = None
    """Address of a Ray cluster; None: `$RAY_ADDRESS`, else a new local Ray."""
    spend: float | None = None
    """Most USD that a paid judge may cost in all; None: no limit was named."""

    @property
    def here(self) -> bool:
        """Whether this machine builds."""
        return EXECUTORS[self.executor].here

    def check(self) -> None:
        """Raises UnknownName for an unknown executor, StagealignError for an address that the executor does not use."""
        if self.executor not in EXECUTORS:
            raise UnknownName("--executor", self.executor, EXECUTORS, listed=False)
        if self.here and self.address is not None:
            raise StagealignError(f"--address {self.address}: this is the address of a Ray cluster; add --executor ray")


def opened(plan: "Plan", store: "Store", how: Execution) -> "AbstractContextManager[Crew]":
    """Context manager of the crew that builds the plan; a plan without missing artifacts joins no cluster."""
    row = EXECUTORS[how.executor if plan.missing else "local"]
    crew: AbstractContextManager[Crew] = code_at(row.opens)(plan, store, how)
    return crew
