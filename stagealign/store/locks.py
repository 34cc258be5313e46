"""One builder of a thing at a time, on one machine or on many that share a folder, and who it is.

Two layers. The kernel's lock, where the file system has one: it goes when its process goes. And a marker file that
names the holder (filelock's SoftFileLock: exclusive creation, process id and start), for folders over a network, where
the kernel's lock may be refused or hold on one machine only. Of a holder on this machine it is known whether it lives;
one elsewhere shows it by touching its marker, and is replaced after `STALE` seconds of silence, measured on the
waiter's own clock. What the silent one still finishes is thrown away: see `Held.mine`.
"""

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

HEARTBEAT = 5.0
"""Seconds between two touches of a marker."""
STALE = 60.0
"""Seconds without a touch after which a holder that cannot be looked up is taken for dead."""
POLL = 0.2
"""Seconds between two looks of a waiter."""
UNNAMED = 2.0
"""Seconds that a holder has to name itself."""
REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system without locks."""


class Held:
    """A place that this process holds."""

    def __init__(self, marker: Any, replaced: bool):
        self._marker = marker
        self.replaced = replaced
        """A holder was replaced that may still be alive: nothing of what it left may be used."""

    @property
    def mine(self) -> bool:
        """False where another machine took this process for dead, and took over."""
        return bool(self._marker.is_lock_held_by_us)


@contextmanager
def held(place: Path, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[Held]:
    """Holds `place`, waiting as long as a living process has it; `waiting` is told each holder once, in words.

    Raises OSError if the folder cannot be written.
    """
    from filelock import FileLock, SoftFileLock

    marker = SoftFileLock(marker_of(place))
    watch = _Watch(place, waiting)
    with ExitStack() as stack:
        kernel = FileLock(f"{place}.lock", fallback_to_soft=False)
        try:
            _acquire(kernel, watch.look)
            stack.enter_context(kernel)
            kernel.release()  # `enter_context` took it once more
        except OSError as error:
            if error.errno not in REFUSED:
                raise
        replaced = _acquire(marker, watch.gone)
        stack.callback(marker.release)
        over = threading.Event()
        beat = threading.Thread(target=_touch, args=(marker, place, over), name="heartbeat", daemon=True)
        beat.start()
        try:
            yield Held(marker, replaced)
        finally:
            over.set()
            beat.join()


def marker_of(place: Path) -> Path:
    """The file that names who holds `place`."""
    return place.with_name(f"{place.name}.holder")


def holder(place: Path) -> str | None:
    """Who holds `place`, as `pid 12 on host`; None where nobody says so."""
    with suppress(OSError, UnicodeDecodeError):
        lines = marker_of(place).read_text(encoding="utf-8").splitlines()
        if len(lines) >= 2:
            return f"pid {lines[0]} on {lines[1].partition('?pidns-')[0]}"
    return None


class _Watch:
    """A waiter's view of the holder: who it is, and since when its marker has not changed."""

    def __init__(self, place: Path, waiting: Callable[[str], None]):
        self.place, self.waiting = place, waiting
        self.named: str | None = None
        self.began = time.monotonic()
        self.seen: tuple[Any, float] = (None, self.began)

    def look(self) -> str:
        """Tells of a holder that was not told yet; never asks to break in."""
        who = holder(self.place)
        if who is None and time.monotonic() - self.began > UNNAMED:
            who = "another process"
        if who not in (None, self.named):
            self.named = who
            self.waiting(str(who))
        return ""

    def gone(self) -> str:
        """`dead` or `silent` if the holder is to be replaced; else empty."""
        self.look()
        state: Any = None
        with suppress(OSError):
            found = marker_of(self.place).stat()
            state = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        if state != self.seen[0]:
            self.seen = (state, time.monotonic())
        if _zombie(holder(self.place)):
            return "dead"
        return "silent" if state is not None and time.monotonic() - self.seen[1] >= STALE else ""


def _zombie(who: str | None) -> bool:
    """Whether a holder on this machine has ended, but its parent has not yet read its exit code."""
    found = re.fullmatch(r"pid (\d+) on (.*)", who or "")
    if not found or found[2] != socket.gethostname():
        return False
    with suppress(OSError, IndexError):
        return Path(f"/proc/{found[1]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    return False


def _acquire(lock: Any, gone: Callable[[], str]) -> bool:
    """Whether a silent holder was replaced to get this lock; `gone` is called after each failed try."""
    from filelock import Timeout

    replaced = False
    while True:
        try:
            lock.acquire(timeout=0)
            return replaced
        except Timeout:
            why = gone()
            if why:
                lock.break_lock()
                replaced = replaced or why == "silent"
            else:
                time.sleep(POLL)


def _touch(marker: Any, place: Path, over: threading.Event) -> None:
    """Shows that the holder lives, for as long as it is the holder."""
    while not over.wait(HEARTBEAT):
        if not marker.is_lock_held_by_us:
            return
        with suppress(OSError):
            os.utime(marker_of(place))
