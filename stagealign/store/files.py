"""Atomic writes: a file is written beside its target, then renamed, so that a kill leaves the old file."""

import errno
import os
from pathlib import Path

from stagealign.base.errors import CannotRun

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk that is full, read-only or not the user's."""


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8 and keeps its line ends.

    Raises CannotRun if the folder or the disk cannot be written; an older file then stays.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`.

    Raises CannotRun if the folder or the disk cannot be written; an older file then stays.
    """
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
    """Raises CannotRun if no file can be written to `path`, before any work. Missing folders are no error."""
    existing = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if path.is_dir():
        raise CannotRun(f"{option} {path}: a folder; name a file in it")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise CannotRun(f"{option} {path}: {existing} is no folder that can be written to; name another place")


def append(path: Path, lines: str) -> int:
    """Appends whole lines to a file in one write, so that lines of two processes do not mix.

    Returns the byte at which they end. An incomplete last line, left by a crash, is ended first. A new file is readable
    by its owner only (0600). Raises CannotRun if the disk cannot hold all lines; the file then keeps its old size.
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
    """Removes temporary files of this file whose writers have ended; a kill leaves one behind."""
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
