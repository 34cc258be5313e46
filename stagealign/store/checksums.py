"""Checksums of files, records and rows, which show whether they changed since they were written.

A seal is the checksum of a JSON object, kept under its key `seal` and taken over all other keys. Objects of old
versions have no seal: they stay usable, and are not checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

SEAL = "seal"


class WrittenFile(TypedDict):
    """Size and checksum of a file, as it was written."""

    bytes: int
    sha256: str
    """64 hex digits."""


_digests: dict[tuple[int, int, int, int], str] = {}
"""Digest by device, inode, size and time of change: a process reads a large file once, even under several names."""


def file_digest(path: Path) -> str:
    """sha256 of the file, 64 hex digits; cached until the file changes."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with open(path, "rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def contents(folder: Path, without: str) -> dict[str, WrittenFile]:
    """Size and checksum of every file below a folder, by relative path; leaves out the file `without` at its top."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / without)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }


def damage(folder: Path, files: Mapping[str, WrittenFile], deep: bool) -> str | None:
    """First file that differs from its entry, and how; None if all are the same.

    Compares sizes; with `deep` contents too.
    """
    for name, entry in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{path}: {size:,} bytes found, {entry['bytes']:,} were written"
            if deep and file_digest(path) != entry["sha256"]:
                return f"{path}: its content changed since it was written"
        except FileNotFoundError:
            return f"{path}: missing"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error})"
    return None


def seal_of(value: Mapping[str, object]) -> str:
    """Checksum of a JSON object without its seal, 16 hex digits; white space and the order of keys do not matter."""
    return _seal_of_read(json.loads(json.dumps(value)))


def _seal_of_read(value: Mapping[str, object]) -> str:
    """Seal of an object that was read from JSON: its keys are text, and its numbers have their written form."""
    unsealed = {key: item for key, item in value.items() if key != SEAL}
    canonical = json.dumps(unsealed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, object]) -> dict[str, object]:
    """The object with its seal."""
    return {**value, SEAL: seal_of(value)}


def whole(line: bytes) -> dict[str, object] | None:
    """JSON object of one kept line; None if the line is incomplete or changed since it was written."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and not broken(row) else None


def broken(value: Mapping[str, object]) -> bool:
    """Whether an object read from JSON has a wrong seal; False if it has no seal."""
    return SEAL in value and value[SEAL] != _seal_of_read(value)
