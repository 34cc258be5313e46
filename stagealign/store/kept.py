"""Rows in a JSON-lines file that only grows: what was measured, sampled or answered is on disk before it is used."""

import json
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from stagealign.store.checksums import SEAL, sealed, whole
from stagealign.store.files import append

Row: TypeAlias = dict[str, Any]
"""A row without its checksum, as JSON has it: `key`, a text, and the columns of whoever keeps it."""


class RowFile:
    """A JSON-lines file of rows with a `key` and a checksum each. Rows are only added; many threads may add.

    Rows of before there were checksums count as whole. Blank lines count as nothing.
    """

    def __init__(self, path: Path, fits: Callable[[Row], bool] = lambda row: True):
        """`fits` says whether a whole row has the columns that its reader needs; one that has not is damaged."""
        self.path, self.fits = path, fits
        self.damaged = 0
        """Lines that are not as they were written, of the last reading."""
        self._lock = threading.Lock()
        self._reader: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[int, Row]]:
        """Whole rows, in order, with the byte at which each line starts; counts the others in `damaged`."""
        self.damaged, place = 0, 0
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                row = self._fitting(line)
                if row is not None:
                    yield place, row
                elif line.strip():
                    self.damaged += 1
                place += len(line)

    def at(self, place: int) -> Row | None:
        """The row whose line starts at that byte; None if it is no longer as it was written."""
        with self._lock:
            if self._reader is None:
                self._reader = open(self.path, "rb")  # noqa: SIM115
                weakref.finalize(self, self._reader.close)
            self._reader.seek(place)
            return self._fitting(self._reader.readline())

    def add(self, row: Mapping[str, object]) -> int:
        """Writes a row to disk, in one write. Returns the byte at which its line starts.

        Raises CannotRun if the disk does not take it.
        """
        line = json.dumps(sealed(row), ensure_ascii=True) + "\n"
        with self._lock:
            return append(self.path, line) - len(line)

    def cut(self) -> None:
        """Removes a last line that an interrupt left half written, so that it does not count as damaged."""
        with open(self.path, "r+b") as file:
            file.truncate(_end_of_lines(file))

    def _fitting(self, line: bytes) -> Row | None:
        row = whole_row(line)
        return row if row is not None and self.fits(row) else None


class Kept:
    """Rows by key. Only the place of each row is in memory. Without a path they lie in a temporary file.

    A damaged line is counted, and measured again; half a last line, which an interrupt leaves, is cut off uncounted.
    """

    def __init__(self, path: Path | None, columns: Collection[str] | None = None):
        """`columns` of a row, beside its key; None takes any."""
        self.path = path
        self.places: dict[str, int] = {}
        self._file = RowFile(_temporary(self) if path is None else path, lambda row: _knows(row, columns))
        self._file.path.parent.mkdir(parents=True, exist_ok=True)
        self._file.path.touch()
        self._file.cut()
        self.places = {row["key"]: place for place, row in self._file.read()}

    @property
    def damaged(self) -> int:
        """Lines of the file that are not as they were written."""
        return self._file.damaged

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def get(self, key: str) -> Row | None:
        """The last row of a key; None if there is none."""
        return self._file.at(self.places[key]) if key in self.places else None

    def add(self, row: Row) -> None:
        """Keeps a row. Raises CannotRun if the disk does not take it."""
        self.places[row["key"]] = self._file.add(row)


def whole_row(line: bytes, columns: Collection[str] | None = None) -> Row | None:
    """The row of one kept line; None if it is not as it was written, or has a column beside `columns` and its key."""
    row = whole(line)
    if row is None or not isinstance(row.get("key"), str):
        return None
    unsealed = {name: value for name, value in row.items() if name != SEAL}
    return unsealed if _knows(unsealed, columns) else None


def _knows(row: Row, columns: Collection[str] | None) -> bool:
    return columns is None or row.keys() - {"key"} <= set(columns)


def _temporary(owner: object) -> Path:
    """A file that is removed with its owner."""
    folder = tempfile.TemporaryDirectory(prefix="stagealign-kept-")
    weakref.finalize(owner, folder.cleanup)
    return Path(folder.name) / "rows.jsonl"


def _end_of_lines(file: IO[bytes]) -> int:
    """The byte after the last line end; 0 for a file without one."""
    file.seek(0, 2)
    end = file.tell()
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
