"""Rows in a JSON-lines file that only grows."""

import json
import tempfile
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stagealign.store.checksums import SEAL, sealed, whole


class Kept:
    """Rows that were measured before, by prompt hash, in a JSON-lines file that only grows.

    In memory is only where each row starts. Without a path they lie in a temporary file.

    A line that is not as it was written is counted and measured again, and so is one that an interrupt cut, uncounted.
    """

    def __init__(self, path: Path | None, columns: Collection[str] | None = None):
        """`columns` of a row, beside its key; None takes any."""
        self.path = path
        self.places: dict[str, int] = {}
        self.damaged = 0
        self._columns = columns
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile() if path is None else open(path, "a+b")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._read()

    def _read(self) -> None:
        """Finds the rows that are whole; cuts off a last line that an interrupt left half written."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if line.endswith(b"\n"):
                row = whole_row(line, self._columns)
                if row is None:
                    self.damaged += 1
                else:
                    self.places[row["key"]] = end
                end += len(line)
        self._file.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a prompt; None where it was not measured."""
        if key not in self.places:
            return None
        self._file.seek(self.places[key])
        return whole_row(self._file.readline(), self._columns)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keeps a row, on disk before anything is made of it."""
        line = json.dumps(sealed(row), ensure_ascii=True).encode() + b"\n"
        self._file.seek(0, 2)
        self._file.write(line)
        self._file.flush()
        self.places[row["key"]] = self._file.tell() - len(line)


def whole_row(line: bytes, columns: Collection[str] | None = None) -> dict[str, Any] | None:
    """The row of one kept line, without its seal; None where it is not as it was written."""
    row = whole(line)
    if row is None or not isinstance(row.get("key"), str):
        return None
    row.pop(SEAL, None)
    known = columns is None or (row.keys() - {"key"} <= set(columns))
    return row if known else None
