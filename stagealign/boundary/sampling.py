"""What the policy writes for each prompt of the data."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from stagealign.scoring.contest import Judged
from stagealign.store.kept import Kept

COMPLETIONS, STATIC = 2, 2
"""Candidates a prompt: sampled, the paper's number, and static, its chosen and rejected."""


@dataclass(frozen=True)
class SampledPrompt:
    """What the policy wrote for one prompt."""

    completions: tuple[str, ...]
    tokens: int
    truncated: int
    failed: str | None = None
    """Why there are no completions; the prompt then counts as a failure and is asked again on the next call."""
    seconds: float | None = None
    """That sampling took; None where nobody took the time."""


@dataclass(frozen=True)
class MeterPrompt:
    """One prompt of the data: what is sampled for, and its static candidates."""

    key: str
    """Prompt hash."""
    prompt: str
    off: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] | None = None


PromptSampler = Callable[[Sequence[MeterPrompt]], Iterable[SampledPrompt]]
"""What the policy wrote, one an item and in order; one that gives them one by one loses less when it is interrupted."""
Measured = tuple[MeterPrompt, SampledPrompt, Judged]
GivenT = TypeVar("GivenT")
END: Any = object()


@dataclass
class Phases:
    """Seconds and tokens of each phase, of this call only."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0
    """SampledPrompt by the policy."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started

    def laps(self, name: str, give: Callable[[], Iterable[GivenT]], count: int) -> Iterator[tuple[GivenT, float]]:
        """Each of the `count` things that `give` gives, with its seconds; what the call itself took is shared."""
        before = self.seconds[name]
        with self.timed(name):
            found = iter(give())
        shared = (self.seconds[name] - before) / count
        while True:
            before = self.seconds[name]
            with self.timed(name):
                one = next(found, END)
            if one is END:
                return
            yield one, shared + self.seconds[name] - before


class Samples:
    """What the policy wrote; of earlier calls' prompts what was kept of it."""

    def __init__(self, sampler: PromptSampler, kept: Kept, phases: Phases | None = None):
        """`phases`: what this call spent before."""
        self.sampler, self.kept = sampler, kept
        self.phases = phases or Phases()

    def contests(self, items: Sequence[MeterPrompt]) -> list[tuple[MeterPrompt, SampledPrompt]]:
        """Each prompt with the policy's completions, sampling those that are not kept."""
        missing = [item for item in items if item.key not in self.kept]
        failed: dict[str, SampledPrompt] = {}
        if missing:
            laps = self.phases.laps("sampling", lambda: self.sampler(missing), len(missing))
            for item, (one, seconds) in zip(missing, laps, strict=True):
                self.phases.tokens += one.tokens
                one = replace(one, seconds=seconds)
                if one.failed is None:
                    self.kept.add({"key": item.key, **asdict(one)})
                else:
                    failed[item.key] = one
        return [(item, failed.get(item.key) or self._sampled(item.key)) for item in items]

    def _sampled(self, key: str) -> SampledPrompt:
        row = self.kept.get(key)
        assert row is not None, key
        return SampledPrompt(tuple(row["completions"]), row["tokens"], row["truncated"], seconds=row.get("seconds"))
