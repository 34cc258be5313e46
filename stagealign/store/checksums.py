"""Checksums of files, records and rows: whether what is read is what was written.

A seal is a key `seal` of a JSON object, over all its other keys. What was written before there were seals has none: it
stays usable, and counts as not checked.
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
"""By device, inode, size and time of change: a large file is read once a process, however many names it has."""


def file_digest(path: Path) -> str:
    """The file's sha256, 64 hex digits; of a file that did not change since it was last asked for, from memory."""
    seen = path.stat()
    key = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    if key not in _digests:
        with open(path, "rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def contents(folder: Path, without: str) -> dict[str, WrittenFile]:
    """Size and checksum of every file below a folder, by its path there; `without` names one file at its top."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / without)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }


def damage(folder: Path, files: Mapping[str, WrittenFile], deep: bool) -> str | None:
    """The first file that differs from what `contents` saw, and how; None if all are the same.

    Sizes only, unless `deep`: then contents too.
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
    """Checksum of a JSON object less its seal, 16 hex digits; white space and the order of keys do not matter."""
    return _seal_of_read(json.loads(json.dumps(value)))


def _seal_of_read(value: Mapping[str, object]) -> str:
    """The seal of what was read from JSON, where keys are text and numbers have been written once."""
    unsealed = {key: one for key, one in value.items() if key != SEAL}
    canonical = json.dumps(unsealed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, object]) -> dict[str, object]:
    """The object with its seal."""
    return {**value, SEAL: seal_of(value)}


def whole(line: bytes) -> dict[str, object] | None:
    """The JSON object of one kept line; None for half a line of a kill, and for one that is not as it was written."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and not broken(row) else None


def broken(value: Mapping[str, object]) -> bool:
    """Whether an object read from JSON has a seal that is not its own; False for one without a seal."""
    return SEAL in value and value[SEAL] != _seal_of_read(value)
