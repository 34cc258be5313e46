"""Recorded judgments as values, and the keys by which they are looked up."""

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
    """A prompt with recorded scores: (completion, score) of its candidates by source; higher is better."""

    prompt: str
    on: tuple[tuple[str, float], ...]
    off: tuple[tuple[str, float], ...]

    @property
    def contest(self) -> Contest:
        return Contest(self.prompt, tuple(text for text, _ in self.on), tuple(text for text, _ in self.off))

    @property
    def judged(self) -> Judged:
        """The recorded scores as a verdict."""
        return Judged(tuple(score for _, score in self.on), tuple(score for _, score in self.off))


@dataclass(slots=True)
class RecordedPair:
    """Recorded judgments of one pair, as shares of its first text; `pair_order` defines which text is first."""

    forward: float = 0.0
    """Sum of the first text's shares, each in [0, 1], over records with the first text as `a`."""
    forwards: int = 0
    backward: float = 0.0
    """Sum of the first text's shares over records with the first text as `b`."""
    backwards: int = 0

    def sign(self) -> int | None:
        """1 if the first text wins, -1 if it loses, 0 for a tie; None if every judgment failed."""
        count = self.forwards + self.backwards
        return _sign((self.forward + self.backward) / count) if count else None

    def changed(self) -> bool | None:
        """True if the winner changed with the order; None unless both orders are recorded."""
        if not (self.forwards and self.backwards):
            return None
        return _sign(self.forward / self.forwards) != _sign(self.backward / self.backwards)


PairKey: TypeAlias = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Recorded:
    """Content of a `recorded:FILE`, and its row counts: given = used + dropped + not chosen."""

    path: str
    digest: str
    """sha256 of the file, first 16 hex digits."""
    form: Literal["pairs", "scores"]
    given: int
    used: int
    not_chosen: int
    """Rows of prompts beyond the requested number (form `scores`)."""
    failures: int
    """Pairs without a verdict (form `pairs`), or prompts with a candidate without a score (form `scores`)."""
    tally: Tally
    prompts: Sequence[RecordedPrompt]
    """Form `scores`: the prompts used, in random order."""
    pairs: dict[PairKey, RecordedPair] = field(repr=False)
    """Form `pairs`: records by `pair_key`."""
    most_votes: int = 0
    """Form `scores`: largest number of comparisons across sources of one prompt."""

    def __post_init__(self) -> None:
        self.drops.check(self.given, self.used + self.not_chosen)

    @property
    def drops(self) -> Drops:
        return self.tally.drops


def _sign(share: float) -> int:
    """1 above a half, -1 below, 0 within 1e-9 of it, as a mean of shares can miss a half by rounding."""
    return 0 if math.isclose(share, 0.5, abs_tol=1e-9) else (1 if share > 0.5 else -1)


def text_hash(text: str) -> bytes:
    """Hash of a text; ignores surrounding white space, the kind of line ends and the apostrophe before a formula."""
    bare = from_spreadsheet(text.strip()).strip().replace("\r\n", "\n")
    return hashlib.blake2b(bare.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pair_order(a: str, b: str) -> bool:
    """True if `a` is the first text of the pair in its record."""
    return text_hash(a) <= text_hash(b)


def pair_key(prompt: str, a: str, b: str) -> PairKey:
    """Key of a pair, the same for both orders of its texts."""
    low, high = sorted((text_hash(a), text_hash(b)))
    return text_hash(prompt), low, high


def cross_pairs(contest: Contest) -> Iterator[tuple[str, str]]:
    """Yields each (on, off) of a contest in row-major order."""
    return ((on, off) for on in contest.on for off in contest.off)
