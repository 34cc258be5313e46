"""What an oracle of the boundary meter is given and gives back, whatever kind it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from stagealign.base.errors import StagealignError
from stagealign.store.artifact import Identity


@dataclass(frozen=True)
class Contest:
    """One prompt with its candidates: `on` sampled from the policy, `off` the static ones."""

    prompt: str
    on: tuple[str, ...]
    off: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """An oracle's verdict on one contest: a score for each candidate, higher is better, equal scores tie.

    An oracle that compares pairs also says how each pair across the two sources ended, and that is what votes: pairs
    may go in a circle, and then no scores tell how each of them ended.
    """

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
    won: tuple[float, ...] = ()
    """Share in [0, 1] by which each `on` beats each `off`, those of the first `on` first; empty where scores vote."""
    tokens: int = 0
    """Billed by a served oracle for it."""
    seconds: float | None = None
    """Spent on judging; None if not timed."""


VERDICT_COLUMNS = tuple(field.name for field in fields(Judged))
"""Columns of a kept verdict, beside its key."""


def judged_of(row: Mapping[str, Any]) -> Judged:
    """The verdict of a kept row; columns that are not a verdict's are left out."""
    values = {name: tuple(row.get(name, ())) for name in ("on", "off", "won")}
    return Judged(**{name: row[name] for name in VERDICT_COLUMNS if name in row} | values)


def by_pairs(won: Sequence[float], contest: Contest, compared: int, changed: int) -> Judged:
    """Verdict from pairs alone, `won` as in `Judged`: the score of a candidate is its mean share over its pairs."""
    width = len(contest.off)
    rows = [won[start : start + width] for start in range(0, len(won), width)]
    return Judged(
        on=tuple(sum(row) / width for row in rows),
        off=tuple(sum(1 - one for one in column) / len(rows) for column in zip(*rows, strict=True)),
        won=tuple(won),
        compared=compared,
        changed=changed,
    )


class BudgetSpent(StagealignError):
    """Error of an oracle that reached its limit, named in the text; the verdicts before it stand."""


class Oracle(Protocol):
    """Anything that can judge contests."""

    @property
    def identity(self) -> Identity:
        """What may change a verdict: kind, weights or model name, settings; part of the meter's cache key."""
        ...

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """One verdict a contest, in order; may batch across contests, and a verdict never depends on its batch."""
        ...
