"""Tiny builders that tests of the store and of execution name; worker processes import them from here."""

import errno
import os
import time


def write(work):
    """Writes what it was given; one line a call in `calls` shows how often it was called."""
    with open(work.home / "calls", "a", encoding="utf-8") as calls:
        calls.write(f"{work.out.name.split('.')[0]}\n")
    time.sleep(work.params.get("sleep", 0))
    texts = [(folder / "text").read_text() for folder in work.inputs.values()]
    (work.out / "text").write_text("+".join([*texts, str(work.params.get("say", ""))]))
    return {"said": work.params.get("say")}


def exit_halfway(work):
    """Ends its process without a word the first time, as a power cut would."""
    (work.out / "half").write_text("half")
    if not (work.home / "cut-once").exists():
        (work.home / "cut-once").touch()
        os._exit(9)
    return write(work)


def fail(work):
    raise ValueError(f"no {work.params['say']} today")


def disk_full(work):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work.out / "weights"))


def disk_full_elsewhere(work):
    """As safetensors reports it: no OSError, only its words."""
    raise RuntimeError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")


def unstable(work):
    return {"fact": {1, 2}}


def prepare(threads, log):
    """A worker without torch."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
