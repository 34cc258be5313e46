"""One builder at a time, even if locks are refused or have no effect; dead and silent holders are replaced."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagealign.base.kind import Kind
from stagealign.store import locks
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.locks import held, holder, marker_of

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "factories")])}
WAYS = {
    "work": "",
    "refused": "def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\nfcntl.flock = flock",
    "lie": "fcntl.flock = lambda *_: None",
    "other machines": (
        "fcntl.flock = lambda *_: None\nsocket.gethostname = lambda: f'machine{number}'\n"
        "locks.HEARTBEAT, locks.STALE = 0.2, 6.0"
    ),
}
SCRIPT = """
import errno, fcntl, socket, sys
from pathlib import Path
from stagealign.store import locks
from stagealign.base.kind import Kind
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
number = int(sys.argv[2])
{way}
made = 0
order = range(4) if number % 2 else reversed(range(4))
for one in order:
    artifact = Artifact(f"a{{one}}", Kind("factory_builders:write", price="free"), {{"say": one, "sleep": 0.3}})
    told = lambda path, who: print(f"waiting for {{path}}: {{who}}", flush=True)
    made += Store(Path(sys.argv[1])).obtain(artifact, told)[1]
print("made", made)
"""


def started(home, way, number):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(way=WAYS[way]), str(home), str(number)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(home):
    return sorted((home / "calls").read_text().split())


@pytest.mark.parametrize("way", WAYS)
def test_eight_processes_build_each_artifact_once_and_say_for_whom_they_wait(way, tmp_path):
    processes = [started(tmp_path, way, number) for number in range(8)]
    outputs = [one.communicate(timeout=120)[0] for one in processes]
    assert [one.returncode for one in processes] == [0] * 8, outputs
    assert calls(tmp_path) == ["a0", "a1", "a2", "a3"]
    assert sum(int(out.rpartition("made ")[2]) for out in outputs) == 4
    waited = [line for out in outputs for line in out.splitlines() if line.startswith("waiting for ")]
    pids = {str(one.pid) for one in processes}
    assert waited
    assert all(line.split("pid ")[1].split(" on ")[0] in pids for line in waited)
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob("*.holder")]


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_holder_is_noticed_and_replaced(way, tmp_path):
    first = started(tmp_path, way, 1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "calls").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it neither finishes nor touches its marker
    second = started(tmp_path, way, 3)
    time.sleep(0.5)
    first.kill()
    assert second.communicate(timeout=60)[0].rstrip().endswith(("made 4", "made 3"))
    first.communicate()
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob("*.holder")]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a0", "a1", "a2", "a3"}


def test_what_a_silent_holder_still_finishes_is_thrown_away(tmp_path, monkeypatch):
    """The holder's machine sleeps while it builds; another takes over, and its artifact is the one that stands."""
    artifact = Artifact("a", Kind("factory_builders:write", price="free"), {"say": "same"})
    ours = Store(tmp_path)
    built = []

    def slow(work):
        marker = marker_of(tmp_path / "a")
        marker.write_text("99\nelsewhere\n")  # as the one that took over would leave it
        built.append(work.out)
        (work.out / "text").write_text("ours")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "text").write_text("theirs")
        record = {"fingerprint": artifact.fingerprint, "identity": artifact.identity, "facts": {}}
        (tmp_path / "a" / "record.json").write_text(__import__("json").dumps(record))

    monkeypatch.setattr("factory_builders.write", slow)
    assert ours.obtain(artifact)[1] is False
    assert (tmp_path / "a" / "text").read_text() == "theirs"
    assert not built[0].exists()


def test_a_holder_elsewhere_is_replaced_only_after_silence_and_its_work_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 0.6)
    monkeypatch.setattr(locks, "POLL", 0.05)
    marker_of(tmp_path / "a").write_text("12\nelsewhere\n")
    told = []
    began = time.monotonic()
    with held(tmp_path / "a", told.append) as hold:
        assert time.monotonic() - began >= 0.6
        assert hold.replaced
        assert hold.mine
        assert holder(tmp_path / "a") == f"pid {os.getpid()} on {socket.gethostname()}"
    assert told == ["pid 12 on elsewhere"]
    assert holder(tmp_path / "a") is None


def test_a_marker_that_is_touched_is_not_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 0.5)
    monkeypatch.setattr(locks, "POLL", 0.02)
    marker = marker_of(tmp_path / "a")
    marker.write_text("12\nelsewhere\n")
    looks = []

    def touched(place):
        looks.append(place)
        if len(looks) < 40:
            os.utime(marker, ns=(len(looks), len(looks)))
        return "pid 12 on elsewhere"

    monkeypatch.setattr(locks, "holder", touched)
    with held(tmp_path / "a") as hold:
        assert hold.replaced
        assert len(looks) > 40


def test_other_errors_of_a_lock_are_not_taken_for_a_share_without_locks(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="I/O error"), held(tmp_path / "a"):
        pass
