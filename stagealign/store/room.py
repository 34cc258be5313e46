"""Errors of a full, read-only or foreign disk, with advice for the user."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagealign.base.errors import StagealignError
from stagealign.store.files import NO_ROOM

SMALLEST = 1 << 14
"""Free bytes below which a disk is full."""


@contextmanager
def naming_room(folder: Path) -> Iterator[None]:
    """Turns errors of a full, read-only or foreign disk into one that says what to do."""
    try:
        yield
    except StagealignError:
        raise
    except Exception as error:
        no_room = room_error(folder, error)
        if no_room is None:
            raise
        raise no_room from error


def room_error(folder: Path, error: Exception) -> StagealignError | None:
    """The error for a user if a full, read-only or foreign disk caused `error`; else None.

    Some libraries raise no OSError for a full disk, and torch does not mention it. The free space then decides.
    """
    full = os.strerror(errno.ENOSPC)
    known = isinstance(error, OSError) and error.errno in NO_ROOM
    if not known and full not in str(error) and not _is_full(folder):
        return None
    where, what = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or full
    return StagealignError(
        f"{where}: {what}; free some space or point STAGEALIGN_HOME to another folder, then run the same command "
        "again: all that is built stays"
    )


def _is_full(folder: Path) -> bool:
    """Whether the disk has no room left for even a small file."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return shutil.disk_usage(existing).free < SMALLEST
