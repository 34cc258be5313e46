"""Random choice of prompts from a stream of rows; their values are stored on disk, not in memory.

The choice is by a keyed hash of the prompt's text. The order is random by seed and independent of the file's order and
format. The first prompts of a larger choice are the prompts of a smaller one.
"""

import hashlib
import heapq
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from stagealign.base.errors import BadData
from stagealign.base.identity import stream
from stagealign.data.tables import Tally

ItemT = TypeVar("ItemT")
GroupT = TypeVar("GroupT", bound="_Group")


class Shelf(Generic[ItemT]):
    """Values in a temporary file, addressed by their offset; the file is removed with the object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the finalizer
        weakref.finalize(self, self._file.close)
        self._end = 0

    def put(self, value: ItemT) -> int:
        """Stores a value and returns its place."""
        place = self._file.seek(self._end)
        pickle.dump(value, self._file, pickle.HIGHEST_PROTOCOL)
        self._end = self._file.tell()
        return place

    def get(self, place: int) -> ItemT:
        """The value at a place."""
        self._file.seek(place)
        value: ItemT = pickle.load(self._file)  # safe: this process wrote it, into an unnamed file
        return value


class Shelved(Sequence[ItemT]):
    """Sequence of values of a shelf in a given order; each value is read on access."""

    def __init__(self, shelf: Shelf[ItemT], places: Sequence[int]):
        self._shelf, self._places = shelf, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> ItemT: ...
    @overload
    def __getitem__(self, at: slice) -> list[ItemT]: ...
    def __getitem__(self, at: int | slice) -> ItemT | list[ItemT]:
        if isinstance(at, slice):
            return [self._shelf.get(place) for place in self._places[at]]
        return self._shelf.get(self._places[at])

    def __iter__(self) -> Iterator[ItemT]:
        return (self._shelf.get(place) for place in self._places)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class _Group(Protocol):
    """State of the rows of one prompt."""

    rows: int


class Pick(Generic[GroupT]):
    """The prompts with the smallest keyed hashes: a random choice in memory proportional to its size.

    A prompt that is chosen in the end was chosen since its first row, so all of its rows have been seen.
    """

    def __init__(self, most: int | None, seed: int):
        self.most = most
        self.left_out = 0
        self._key = stream(seed, "preferences").to_bytes(8, "big")
        self._groups: dict[int, GroupT] = {}
        self._worst: list[int] = []  # negated hashes: a heap with the largest hash on top

    def group(self, prompt: str, new: Callable[[], GroupT]) -> GroupT | None:
        """The prompt's group, created at its first row; None if the prompt is not chosen and its row is left out."""
        digest = hashlib.blake2b(prompt.encode(), key=self._key, digest_size=16).digest()
        mark = -int.from_bytes(digest, "big")
        if mark in self._groups:
            return self._groups[mark]
        if self.most is None:
            pass  # every prompt is chosen, so no heap is needed
        elif len(self._worst) < self.most:
            heapq.heappush(self._worst, mark)
        elif mark < self._worst[0]:
            self.left_out += 1
            return None
        else:
            self.left_out += self._groups.pop(heapq.heapreplace(self._worst, mark)).rows
        group = self._groups[mark] = new()
        return group

    def in_order(self) -> list[GroupT]:
        """Groups in the order of their hashes: a random order that is the same for the same prompts."""
        return [self._groups[mark] for mark in sorted(self._groups, reverse=True)]


def positive(prompts: int | None) -> None:
    """Raises BadData for a number of prompts below 1."""
    if prompts is not None and prompts < 1:
        raise BadData(f"prompts {prompts!r}: not a positive number; leave it out to use all")


def some(source: str, given: int, used: int, tally: Tally) -> None:
    """Raises BadData if no row is left."""
    if not given:
        raise BadData(empty(source))
    if not used:
        raise BadData(
            f"{source}: none of {given} {tally.unit}s can be used; {tally}; correct the file or choose another"
        )


def empty(source: str) -> str:
    """Error text for a file without rows."""
    return f"{source}: no rows found; give a file with at least one"
