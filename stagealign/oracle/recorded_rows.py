"""Recorded judgments as values."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from stagealign.data.formats import from_spreadsheet
from stagealign.data.records import Drops
from stagealign.data.tables import Tally
from stagealign.scoring.contest import Contest, Judged


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt whose candidates were scored beforehand: (completion, score) by source, a higher score wins."""

    prompt: str
    on: tuple[tuple[str, float], ...]
    off: tuple[tuple[str, float], ...]

    @property
    def contest(self) -> Contest:
        return Contest(self.prompt, tuple(text for text, _ in self.on), tuple(text for text, _ in self.off))

    @property
    def judged(self) -> Judged:
        """The recorded scores as an oracle would have given them."""
        return Judged(tuple(score for _, score in self.on), tuple(score for _, score in self.off))


@dataclass(slots=True)
class RecordedPair:
    """What is recorded of one pair, seen from one order of its texts."""

    forward: float = 0.0
    """Sum of shares by which the first text is preferred, over records in this order."""
    forwards: int = 0
    backward: float = 0.0
    """The same sum (of the first text's shares), over records in the other order."""
    backwards: int = 0

    def sign(self) -> int | None:
        """1 where the first text wins, -1 where it loses, 0 for a tie; None where every judgment failed."""
        count = self.forwards + self.backwards
        return _sign((self.forward + self.backward) / count) if count else None

    def changed(self) -> bool | None:
        """Whether the winner changed with the order; None unless both orders were asked."""
        if not (self.forwards and self.backwards):
            return None
        return _sign(self.forward / self.forwards) != _sign(self.backward / self.backwards)


PairKey: TypeAlias = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Recorded:
    """A `recorded:FILE`, and what became of every row: given = used + dropped + not chosen."""

    path: str
    digest: str
    """sha256 of the file, first 16 hex digits."""
    form: Literal["pairs", "scores"]
    given: int
    used: int
    not_chosen: int
    """Rows of prompts beyond the number asked for (form `scores`)."""
    failures: int
    """Pairs without a verdict (form `pairs`), prompts with a candidate without a score (form `scores`)."""
    tally: Tally
    prompts: Sequence[RecordedPrompt]
    """Form `scores`: prompts with candidates of both sources, in random order."""
    pairs: dict[PairKey, RecordedPair] = field(repr=False)
    """Form `pairs`: verdicts by the hashes of prompt and texts."""
    most_votes: int = 0
    """Form `scores`: most comparisons across sources that a prompt has."""

    def __post_init__(self) -> None:
        self.drops.check(self.given, self.used + self.not_chosen)

    @property
    def drops(self) -> Drops:
        return self.tally.drops


def _sign(share: float) -> int:
    """1 above a half, -1 below; means of recorded shares that differ from a half by rounding alone are ties."""
    return 0 if math.isclose(share, 0.5, abs_tol=1e-9) else (1 if share > 0.5 else -1)


def marked(text: str) -> bytes:
    """What tells a text: white space around it, kinds of line ends and the apostrophe before a formula do not count."""
    bare = from_spreadsheet(text.strip()).strip().replace("\r\n", "\n")
    return hashlib.blake2b(bare.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pair_order(a: str, b: str) -> bool:
    """Whether the pair is kept in this order of its texts."""
    return marked(a) <= marked(b)


def pair_key(prompt: str, a: str, b: str) -> PairKey:
    """Key of a pair, the same for both orders of its texts."""
    low, high = sorted((marked(a), marked(b)))
    return marked(prompt), low, high


def cross_pairs(contest: Contest) -> Iterator[tuple[str, str]]:
    """Each (on, off) of a contest, those of the first `on` first."""
    return ((on, off) for on in contest.on for off in contest.off)
