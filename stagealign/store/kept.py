"""Append-only JSON-lines files of rows: each measurement, sample or answer is on disk before it is used."""

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
"""A JSON object without its checksum: `key`, a text, and its writer's columns."""


class RowFile:
    """A JSON-lines file of rows with a `key` and a checksum each. Rows are only added; many threads may add.

    Rows of old versions have no checksum and count as whole. Blank lines are ignored.
    """

    def __init__(self, path: Path, fits: Callable[[Row], bool] = lambda row: True):
        """`fits` says whether a whole row has the columns that its reader needs; otherwise it counts as damaged."""
        self.path, self.fits = path, fits
        self.damaged = 0
        """Number of damaged lines in the last reading."""
        self._lock = threading.Lock()
        self._reader: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[int, Row]]:
        """(byte at which the line starts, row) of each whole row, in order; counts the others in `damaged`."""
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
        """Row whose line starts at byte `place`; None if it is damaged."""
        with self._lock:
            if self._reader is None:
                self._reader = open(self.path, "rb")  # noqa: SIM115
                weakref.finalize(self, self._reader.close)
            self._reader.seek(place)
            return self._fitting(self._reader.readline())

    def add(self, row: Mapping[str, object]) -> int:
        """Writes a row to disk, in one write. Returns the byte at which its line starts.

        Raises CannotRun if the disk cannot be written.
        """
        line = json.dumps(sealed(row), ensure_ascii=True) + "\n"
        with self._lock:
            return append(self.path, line) - len(line)

    def cut(self) -> None:
        """Removes an incomplete last line, left by an interrupt, so that it does not count as damaged."""
        with open(self.path, "r+b") as file:
            file.truncate(_end_of_lines(file))

    def _fitting(self, line: bytes) -> Row | None:
        row = whole_row(line)
        return row if row is not None and self.fits(row) else None


class Kept:
    """Rows by key. Only the place of each row is in memory. Without a path they lie in a temporary file.

    A damaged line is counted, and its row is missing, so that it is measured again. An incomplete last line, left by an
    interrupt, is cut off and not counted.
    """

    def __init__(self, path: Path | None, columns: Collection[str] | None = None):
        """`columns` that a row may have beside its key; None allows any."""
        self.path = path
        self.places: dict[str, int] = {}
        self._file = RowFile(_temporary(self) if path is None else path, lambda row: _knows(row, columns))
        self._file.path.parent.mkdir(parents=True, exist_ok=True)
        self._file.path.touch()
        self._file.cut()
        self.places = {row["key"]: place for place, row in self._file.read()}

    @property
    def damaged(self) -> int:
        """Number of damaged lines in the file."""
        return self._file.damaged

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def get(self, key: str) -> Row | None:
        """The last row of a key; None if there is none."""
        return self._file.at(self.places[key]) if key in self.places else None

    def add(self, row: Row) -> None:
        """Keeps a row. Raises CannotRun if the disk cannot be written."""
        self.places[row["key"]] = self._file.add(row)


def whole_row(line: bytes, columns: Collection[str] | None = None) -> Row | None:
    """Row of one kept line; None if it is damaged, or has a column other than `columns` and its key."""
    row = whole(line)
    if row is None or not isinstance(row.get("key"), str):
        return None
    unsealed = {name: value for name, value in row.items() if name != SEAL}
    return unsealed if _knows(unsealed, columns) else None


def _knows(row: Row, columns: Collection[str] | None) -> bool:
    return columns is None or row.keys() - {"key"} <= set(columns)


def _temporary(owner: object) -> Path:
    """Path of a temporary file that is removed with its owner."""
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
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
