"""Completions of the policy for the prompts of the data, kept for later calls."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from stagealign.scoring.contest import Judged
from stagealign.store.kept import Kept

COMPLETIONS, STATIC = 2, 2
"""Candidates per prompt: on-policy ones (the paper's number) and static ones (chosen and rejected)."""


@dataclass(frozen=True)
class SampledPrompt:
    """Completions of the policy for one prompt."""

    completions: tuple[str, ...]
    tokens: int
    truncated: int
    failed: str | None = None
    """Reason of a failure; there are then no completions, and the next call samples the prompt again."""
    seconds: float | None = None
    """Spent on sampling; None if not timed."""
    capped: int = 0
    """Number of completions for which the policy's context left fewer new tokens than were asked for."""


@dataclass(frozen=True)
class MeterPrompt:
    """One prompt of the data with its static candidates."""

    key: str
    """Prompt hash."""
    prompt: str
    off: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] | None = None


PromptSampler = Callable[[Sequence[MeterPrompt]], Iterable[SampledPrompt]]
"""Function from prompts to completions, in order. After an interrupt, the values a generator has yielded are kept."""
Measured = tuple[MeterPrompt, SampledPrompt, Judged]
GivenT = TypeVar("GivenT")
END: Any = object()


@dataclass
class Phases:
    """Seconds and sampled tokens of this call, by phase."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0
    """Number of tokens that the policy sampled."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside the context to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started

    def laps(self, name: str, give: Callable[[], Iterable[GivenT]], count: int) -> Iterator[tuple[GivenT, float]]:
        """Yields each of the `count` values of `give()` with its seconds; those of the call are split equally."""
        before = self.seconds[name]
        with self.timed(name):
            values = iter(give())
        shared = (self.seconds[name] - before) / count
        while True:
            before = self.seconds[name]
            with self.timed(name):
                value = next(values, END)
            if value is END:
                return
            yield value, shared + self.seconds[name] - before


class KeptSamples:
    """Completions of a policy: those kept by earlier calls, and new ones for the other prompts."""

    def __init__(self, sampler: PromptSampler, kept: Kept, phases: Phases | None = None):
        """`phases`: time that this call has already spent."""
        self.sampler, self.kept = sampler, kept
        self.phases = phases or Phases()

    def of_prompts(self, items: Sequence[MeterPrompt]) -> list[tuple[MeterPrompt, SampledPrompt]]:
        """Each prompt with the policy's completions, in order; samples and keeps missing ones."""
        missing = [item for item in items if item.key not in self.kept]
        failed: dict[str, SampledPrompt] = {}
        if missing:
            laps = self.phases.laps("sampling", lambda: self.sampler(missing), len(missing))
            for item, (written, seconds) in zip(missing, laps, strict=True):
                self.phases.tokens += written.tokens
                timed = replace(written, seconds=seconds)
                if timed.failed is None:
                    self.kept.add({"key": item.key, **asdict(timed)})
                else:
                    failed[item.key] = timed
        return [(item, failed.get(item.key) or self._sampled(item.key)) for item in items]

    def _sampled(self, key: str) -> SampledPrompt:
        row = self.kept.get(key)
        assert row is not None, key
        return SampledPrompt(
            tuple(row["completions"]),
            row["tokens"],
            row["truncated"],
            seconds=row.get("seconds"),
            capped=row.get("capped", 0),
        )
