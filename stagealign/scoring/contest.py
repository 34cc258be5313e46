"""Contest, verdict and oracle: the interface of all oracles to the meter and to the labels of the grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.reasoning import Answer, answer_in_data, answer_of
from stagealign.data.records import Candidate
from stagealign.data.texts import Messages
from stagealign.store.artifact import Identity


@dataclass(frozen=True)
class Contest:
    """One prompt with its candidates: `on` are on-policy, `off` static. A training pair has one candidate in each."""

    prompt: str
    """Text that identifies the prompt."""
    on: tuple[str, ...]
    off: tuple[str, ...]
    messages: Messages | None = None
    """Turns of the prompt, for an oracle that renders conversations; None for plain text."""


@dataclass(frozen=True)
class Judged:
    """An oracle's verdict on one contest: a score for each candidate, higher is better, equal scores tie.

    An oracle that compares pairs also gives `won`, the result of each pair across the two sources. Then these results
    vote instead of the scores, as pairs may form a cycle, which scores cannot express.
    """

    on: tuple[float, ...]
    off: tuple[float, ...]
    compared: int = 0
    """Number of pairs compared in both orders."""
    changed: int = 0
    """Number of those pairs whose winner changed with the order."""
    truncated: int = 0
    """Number of candidates that were cut to fit the oracle."""
    failed: str | None = None
    """Reason of a failure; scores are then empty, and the contest counts as a failure, not as a tie."""
    won: tuple[float, ...] = ()
    """Share in [0, 1] by which each `on` beats each `off`, in row-major order (`on` x `off`); empty if scores vote."""
    tokens: int = 0
    """Tokens billed by a served oracle."""
    seconds: float | None = None
    """Spent on judging; None if not timed."""


def answer(candidate: Candidate) -> Answer:
    """The part of a completion that is judged: without the reasoning before it."""
    read = answer_of if candidate.source == "on" else answer_in_data
    return read(candidate.completion)


def answers(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The parts of completions that are judged. Raises BadData for one that ends inside its reasoning."""
    judged = [answer(candidate) for candidate in candidates]
    for candidate, one in zip(candidates, judged, strict=True):
        if not one.finished:
            raise BadData(
                f"prompt {candidate.prompt[-60:]!r}: its candidate {candidate.index} ({candidate.source}) ends inside "
                "its reasoning, without an answer; raise the scale's max_new_tokens"
            )
    return tuple(one.text for one in judged)


VERDICT_COLUMNS = tuple(field.name for field in fields(Judged))
"""Columns of a kept verdict besides its key."""


def judged_of(row: Mapping[str, Any]) -> Judged:
    """The verdict in a kept row; other columns are ignored."""
    values = {name: tuple(row.get(name, ())) for name in ("on", "off", "won")}
    return Judged(**{name: row[name] for name in VERDICT_COLUMNS if name in row} | values)


def by_pairs(won: Sequence[float], contest: Contest, compared: int, changed: int) -> Judged:
    """Verdict from the results of pairs only, `won` as in `Judged`; a score is a candidate's mean share."""
    width = len(contest.off)
    rows = [won[start : start + width] for start in range(0, len(won), width)]
    return Judged(
        on=tuple(sum(row) / width for row in rows),
        off=tuple(sum(1 - share for share in column) / len(rows) for column in zip(*rows, strict=True)),
        won=tuple(won),
        compared=compared,
        changed=changed,
    )


class BudgetSpent(StagealignError):
    """Error of an oracle that reached its token limit; verdicts given before remain valid."""


class Oracle(Protocol):
    """Judges contests."""

    @property
    def identity(self) -> Identity:
        """Values that can change a verdict: kind, weights or model, settings. Part of the key of kept verdicts."""
        ...

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict per contest, in order. Contests may be batched; verdicts do not depend on the batch."""
        ...
