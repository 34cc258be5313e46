"""From a cell to its artifacts, and from artifacts to a result."""

from stagealign.pipeline.rounds import plan_run

__all__ = ["plan_run"]
