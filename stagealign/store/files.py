"""Files that are whole or not there: written beside their place, then renamed; a kill leaves the old one."""

import errno
import os
from pathlib import Path

from stagealign.base.errors import CannotRun

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk that is full, read-only or not the user's."""


def write_text(path: Path, text: str) -> None:
    """Puts `text` at `path` as UTF-8 with its own line ends.

    Raises CannotRun if folder or disk do not take it; what stood there before stays.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Puts `data` at `path`. Raises CannotRun if folder or disk do not take it; what stood there before stays."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CannotRun(
            f"{path}: cannot be written ({error.strerror or error}); free some space or name another folder, then run "
            "the same command again: all that is built stays"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_target(option: str, path: Path) -> None:
    """Raises CannotRun, before any work, where no file could be written to `path`; folders may be made on the way."""
    there = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if path.is_dir():
        raise CannotRun(f"{option} {path}: a folder; name a file in it")
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise CannotRun(f"{option} {path}: {there} is no folder that can be written to; name another place")


def append(path: Path, lines: str) -> int:
    """Adds whole lines to a file that only grows, in one write, so that those of two processes do not mix.

    Returns the byte at which they end. Half a line that a crash left at its end is closed first. The file is the user's
    own (0600). Raises CannotRun where the disk does not take them all: what it took is then cut off again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = ("\n" * cut + lines).encode()
            if os.write(handle, data) != len(data):
                os.ftruncate(handle, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return os.lseek(handle, 0, os.SEEK_CUR)
        finally:
            os.close(handle)
    except OSError as error:
        raise CannotRun(
            f"{path}: cannot be written ({error.strerror or error}); free some space or point STAGEALIGN_HOME to "
            "another folder, then run the same command again: all that was kept stays"
        ) from error


def _sweep(path: Path) -> None:
    """Removes parts of this file whose writers are gone: a kill leaves one behind."""
    for name in os.listdir(path.parent):
        pid = name.removeprefix(f"{path.name}.").removesuffix(".part")
        if name == f"{path.name}.{pid}.part" and pid.isdigit() and not _runs(int(pid)):
            (path.parent / name).unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
