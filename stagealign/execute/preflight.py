"""Checks before any work."""

from pathlib import Path

from stagealign.base.errors import CannotRun
from stagealign.plan.flops import GIB
from stagealign.plan.machine import free_disk
from stagealign.plan.plan import Plan


def check_room(plan: Plan, needed: float, home: Path) -> None:
    """Raises CannotRun where the disk has no room for what the plan would write, `needed` bytes by estimate."""
    free = free_disk(home)
    if free < needed:
        raise CannotRun(
            f"disk: {len(plan.missing)} artifacts need {needed / GIB:.1f} GiB below {home}, {free / GIB:.1f} GiB "
            "are free; free some space, point STAGEALIGN_HOME elsewhere, or choose fewer cells with -k"
        )
