"""Starting policies, rungs and measured policies of results."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stagealign.stats.statistics import paired_differences

SPLIT = "test"
GAIN_KINDS = {"gain": 0, "clean_gain": 1}
"""Kind of gain -> place in a prompt's `[gold, clean gold]`."""


def after(sources: Collection[str]) -> str:
    """Name of a policy by the data it has seen: `start`, `after off`, `after off then on`."""
    return f"after {' then '.join(sources)}" if sources else "start"


@dataclass(frozen=True, order=True)
class Start:
    """Policy that a round starts from."""

    model: str
    method: str
    before: tuple[str, ...]

    @property
    def name(self) -> str:
        return after(self.before)

    @property
    def round(self) -> int:
        return len(self.before) + 1


@dataclass(frozen=True)
class Rung:
    """One round at one learning rate, from one start, with one source and seed."""

    start: Start
    source: str
    seed: int
    learning_rate: float
    state: str
    """`done`, `failed`, `skipped` or `not run`."""
    cells: tuple[str, ...]
    """Ids of all cells that share this rung."""
    recorded: bool
    """Whether later rounds continue from this learning rate."""
    data: Mapping[str, Any] = field(repr=False)
    before: Mapping[str, Any] = field(repr=False)
    """Policy metrics of the start."""

    def gains(self, kind: str) -> Mapping[str, float]:
        """Gain by prompt hash on test prompts; `kind` is `gain` or `clean_gain`."""
        return self._gains[kind]

    @cached_property
    def _gains(self) -> dict[str, dict[str, float]]:
        new, old = self.data["metrics"][SPLIT]["prompts"], self.before[SPLIT]["prompts"]
        return {
            kind: paired_differences(
                {prompt: values[place] for prompt, values in new.items()},
                {prompt: values[place] for prompt, values in old.items()},
            )
            for kind, place in GAIN_KINDS.items()
        }

    def metric(self, name: str) -> float | None:
        """Value of `kl` or of a policy metric on test prompts after the round; shares are returned in percent."""
        metric = self.data.get("kl") if name == "kl" else self.data.get("metrics", {}).get(SPLIT, {}).get(name)
        number = value(metric)
        share = isinstance(metric, Mapping) and metric.get("unit") == "share"
        return 100 * number if share and number is not None else number

    @property
    def validation(self) -> float | None:
        """Clean gain on validation prompts; None if the scale has no such prompts."""
        return value((self.data.get("clean_gain") or {}).get("validation"))


@dataclass(frozen=True)
class MeasuredPolicy:
    """A model after some rounds, with one seed, and its metrics."""

    model: str
    method: str
    """Key of the row; the policy before round 1, which methods share, has the row's suffix alone (`_vllm`) or none."""
    sources: tuple[str, ...]
    seed: int
    metrics: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        return self.model, self.method, self.sources


def value(metric: Any) -> float | None:
    """Number of a metric or a bare number; None if it has no value."""
    number = metric.get("value") if isinstance(metric, Mapping) else metric
    return None if number is None else float(number)
