"""Completions of the policy for the prompts of the data, kept for later calls."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from stagealign.base.reasoning import Answer
from stagealign.data.texts import Messages
from stagealign.scoring.contest import Contest, Judged
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
    reasoned: int = 0
    """Number of completions from which reasoning was taken off."""
    unanswered: int = 0
    """Number of completions that end inside their reasoning, so that nothing is left to judge."""
    marked: int = 0
    """Number of completions with a mark of reasoning amid their text."""
    capped: int = 0
    """Number of completions for which the policy's context left fewer new tokens than were asked for."""

    @property
    def unusable(self) -> str | None:
        """Reason why these completions cannot be judged; None if they can."""
        return self.failed or (UNANSWERED if self.unanswered else None)


UNANSWERED = (
    "a completion of the policy ends inside its reasoning, without an answer; raise --max-new-tokens, or switch "
    "reasoning off if the policy's template can: --template-args '{\"enable_thinking\": false}'"
)


def answered(answers: Sequence[Answer], tokens: int, truncated: int, capped: int) -> SampledPrompt:
    """The samples of one prompt from the answers in their texts; counts as in `SampledPrompt`."""
    return SampledPrompt(
        tuple(answer.text for answer in answers),
        tokens,
        truncated,
        reasoned=sum(answer.reasoned for answer in answers),
        unanswered=sum(not answer.finished for answer in answers),
        marked=sum(answer.marked for answer in answers),
        capped=capped,
    )


@dataclass(frozen=True)
class MeterPrompt:
    """One prompt of the data with its static candidates."""

    key: str
    """Prompt hash."""
    prompt: str
    off: tuple[str, ...]
    messages: Messages | None = None
    """Turns of the prompt; None for plain text."""
    reasoned: int = 0
    """Number of static candidates from which reasoning was taken off."""
    marked: int = 0
    """Number of static candidates with a mark of reasoning amid their text."""
    failed: str | None = None
    """Reason why the static candidates cannot be judged; the prompt is then not sampled."""

    def contest(self, completions: tuple[str, ...]) -> Contest:
        """The contest of these completions of the policy with the static candidates."""
        return Contest(self.prompt, completions, self.off, self.messages)


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
        failed = {item.key: SampledPrompt((), 0, 0, item.failed, seconds=0.0) for item in items if item.failed}
        missing = [item for item in items if item.key not in self.kept and item.key not in failed]
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
            reasoned=row.get("reasoned", 0),
            unanswered=row.get("unanswered", 0),
            marked=row.get("marked", 0),
            capped=row.get("capped", 0),
        )
