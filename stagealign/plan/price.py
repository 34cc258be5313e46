"""Cost of building one artifact, from its kind, its weights and its number of texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagealign.base.errors import BadSpec
from stagealign.grid.cell import Scale
from stagealign.plan.flops import Processor
from stagealign.plan.formulas import FORMULAS, Formula
from stagealign.plan.labelling import LABELLING
from stagealign.store.artifact import Artifact

PRICES: Mapping[str, Formula] = {**FORMULAS, **LABELLING}
"""Formulas by the price that a kind names."""


@dataclass(frozen=True)
class CostEstimate:
    """Cost of one artifact, before a processor is chosen."""

    tokens: float = 0.0
    flops: Mapping[str, float] = field(default_factory=dict)
    """FLOPs by kind of work, as in `plan.flops.Processor.reached`."""
    loaded: float = 0.0
    """Bytes of weights read before the work starts."""
    memory: float = 0.0
    """Peak bytes on one device: what is allocated where the scale's processor has it."""
    least_memory: float = 0.0
    """Bytes without which it cannot be built, if it adapts to less memory; 0 if it does not adapt."""
    disk: float = 0.0
    """Bytes written."""
    judge_dollars: float = 0.0
    """USD for a judge of known price."""
    unpriced: str = ""
    """Judge whose price is unknown; empty if there is none."""
    light: float = 0.0
    """Seconds on a CPU for work without counted FLOPs."""

    @property
    def needed(self) -> float:
        """Bytes without which it cannot be built."""
        return self.least_memory or self.memory

    def seconds(self, processor: Processor) -> float:
        """Seconds on one such processor."""
        return processor.seconds(self.flops, self.loaded) + (0.0 if processor.gpu else self.light)


def estimate(artifact: Artifact, scale: Scale) -> CostEstimate:
    """The cost of building `artifact`. Raises BadSpec if its kind names no formula; no cost is written "free"."""
    formula = PRICES.get(artifact.kind.price)
    if formula is None:
        raise BadSpec(
            f"kind {artifact.kind.name!r}: price {artifact.kind.price!r} is unknown; choose one of {', '.join(PRICES)}"
        )
    return CostEstimate(light=artifact.kind.light, **formula(artifact, scale))
