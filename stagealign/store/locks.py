"""Locks for one builder of an artifact at a time, on one machine or on several that share a folder.

There are two layers. The kernel's lock, if the file system has one, ends with its process. A marker file names the
holder (filelock's SoftFileLock: exclusive creation, process id and start). It is for network folders, where the
kernel's lock may be refused or hold on one machine only. A holder on this machine can be looked up. A holder elsewhere
touches its marker to show that it is alive. It is replaced after `STALE` seconds without a touch by the waiter's clock,
and the output that it still writes is discarded: see `Held.mine`.
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
"""Seconds without a touch after which a holder that cannot be looked up counts as dead."""
POLL = 0.2
"""Seconds between two checks by a waiter."""
UNNAMED = 2.0
"""Seconds that a new holder may take to write its name."""
REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system without locks."""


class Held:
    """A place that this process holds."""

    def __init__(self, marker: Any, replaced: bool):
        self._marker = marker
        self.replaced = replaced
        """Whether a holder was replaced that may still be alive; none of its files may then be used."""

    @property
    def mine(self) -> bool:
        """Whether this process still holds the place; False if another machine replaced it as dead."""
        return bool(self._marker.is_lock_held_by_us)


@contextmanager
def held(place: Path, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[Held]:
    """Holds `place`, after waiting for any living holder.

    `waiting` is called once with each holder, such as `pid 12 on host`. Raises OSError if the folder cannot be written.
    """
    from filelock import FileLock, SoftFileLock

    marker = SoftFileLock(marker_of(place))
    watch = _Watch(place, waiting)
    with ExitStack() as stack:
        kernel = FileLock(f"{place}.lock", fallback_to_soft=False)
        try:
            _acquire(kernel, watch.look)
            stack.enter_context(kernel)
            kernel.release()  # `enter_context` acquired it a second time
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
    """Holder of `place`, such as `pid 12 on host`; None if no marker names one."""
    with suppress(OSError, UnicodeDecodeError):
        lines = marker_of(place).read_text(encoding="utf-8").splitlines()
        if len(lines) >= 2:
            return f"pid {lines[0]} on {lines[1].partition('?pidns-')[0]}"
    return None


class _Watch:
    """A waiter's view of the holder: its name, and the time at which its marker last changed."""

    def __init__(self, place: Path, waiting: Callable[[str], None]):
        self.place, self.waiting = place, waiting
        self.named: str | None = None
        self.began = time.monotonic()
        self.seen: tuple[Any, float] = (None, self.began)

    def look(self) -> str:
        """Reports a new holder to `waiting`. Returns an empty text: the lock must not be broken."""
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
            stat = marker_of(self.place).stat()
            state = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        if state != self.seen[0]:
            self.seen = (state, time.monotonic())
        if _zombie(holder(self.place)):
            return "dead"
        return "silent" if state is not None and time.monotonic() - self.seen[1] >= STALE else ""


def _zombie(who: str | None) -> bool:
    """Whether a holder on this machine has ended, but its parent has not yet read its exit code."""
    match = re.fullmatch(r"pid (\d+) on (.*)", who or "")
    if not match or match[2] != socket.gethostname():
        return False
    with suppress(OSError, IndexError):
        return Path(f"/proc/{match[1]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    return False


def _acquire(lock: Any, gone: Callable[[], str]) -> bool:
    """Acquires the lock. Returns whether a silent holder was replaced; `gone` is called after each failed try."""
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
    """Touches the marker until `over` is set or another process holds the place."""
    while not over.wait(HEARTBEAT):
        if not marker.is_lock_held_by_us:
            return
        with suppress(OSError):
            os.utime(marker_of(place))
