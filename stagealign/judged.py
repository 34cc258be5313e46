"""What an oracle of the boundary meter is given and gives back, whatever kind it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Contest:
    """One prompt with its candidates: `on` sampled from the policy, `off` the static ones."""

    prompt: str
    on: tuple[str, ...]
    off: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """An oracle's verdict on one contest: a score for each candidate, higher is better, equal scores tie."""

    on: tuple[float, ...]
    off: tuple[float, ...]
    compared: int = 0
    """Pairs that were asked in both orders."""
    changed: int = 0
    """Of those, pairs whose winner changed with the order."""
    truncated: int = 0
    """Candidates that were cut to fit the oracle."""
    failed: str | None = None
    """Why there is no verdict; scores are then empty and the contest counts as a failure, never as a tie."""


class Oracle(Protocol):
    """Anything that can judge contests."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What may change a verdict: kind, weights or model name, settings; part of the meter's cache key."""
        ...

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """One verdict a contest, in order; may batch across contests, and a verdict never depends on its batch."""
        ...
