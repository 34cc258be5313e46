"""Contest, verdict and oracle: the interface between any oracle and its users, the meter and the grid's labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from stagealign.base.errors import StagealignError
from stagealign.store.artifact import Identity


@dataclass(frozen=True)
class Contest:
    """One prompt with its candidates: `on` are on-policy, `off` static; a training pair has one of each side."""

    prompt: str
    on: tuple[str, ...]
    off: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """An oracle's verdict on one contest: a score for each candidate, higher is better, equal scores tie.

    An oracle that compares pairs also gives `won`, the result of each pair across the two sources. These results vote,
    not the scores: pairs may form a cycle, which no scores can express.
    """

    on: tuple[float, ...]
    off: tuple[float, ...]
    compared: int = 0
    """Number of pairs compared in both orders."""
    changed: int = 0
    """Number of these whose winner changed with the order."""
    truncated: int = 0
    """Number of candidates that were cut to fit the oracle."""
    failed: str | None = None
    """Reason why there is no verdict; scores are then empty, and the contest counts as a failure, not a tie."""
    won: tuple[float, ...] = ()
    """Share in [0, 1] by which each `on` beats each `off`, those of the first `on` first; empty if scores vote."""
    tokens: int = 0
    """Tokens billed by a served oracle."""
    seconds: float | None = None
    """Spent on judging; None if not timed."""


VERDICT_COLUMNS = tuple(field.name for field in fields(Judged))
"""Columns of a kept verdict, beside its key."""


def judged_of(row: Mapping[str, Any]) -> Judged:
    """The verdict of a kept row; columns that are not a verdict's are left out."""
    values = {name: tuple(row.get(name, ())) for name in ("on", "off", "won")}
    return Judged(**{name: row[name] for name in VERDICT_COLUMNS if name in row} | values)


def by_pairs(won: Sequence[float], contest: Contest, compared: int, changed: int) -> Judged:
    """Verdict from pairs alone, `won` as in `Judged`; a candidate's score is its mean share over its pairs."""
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
    """Error of an oracle that reached its limit, named in the text; the verdicts before it stand."""


class Oracle(Protocol):
    """Judges contests."""

    @property
    def identity(self) -> Identity:
        """Everything that may change a verdict: kind, weights or model, settings; part of the key of kept verdicts."""
        ...

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict a contest, in order; may batch contests, but no verdict depends on its batch."""
        ...
