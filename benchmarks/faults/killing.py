"""Runs disturbed by kills, signals, a full or read-only disk and a wrong clock, then repeated until done."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.attempts import REPORT, RUN, Attempt, Ended, Plant, built, faults_of

Row = dict[str, Any]
SIGNALS = {signal.SIGINT: (130, "interrupted; all that is built stays"), signal.SIGTERM: (143, "terminated; all that")}
ALONE = (*RUN[:-1], "1")
LIMIT = 40
"""Largest number of kills on one store; on a busy machine attempts may be too short to make progress."""


def undisturbed(folder: Path) -> Ended:
    """Outcome of an undisturbed run, the reference of all others. Raises RuntimeError if it fails."""
    ended = Attempt(folder).end()
    if ended.code:
        raise RuntimeError(f"the undisturbed run failed:\n{ended.output}")
    return ended


def killed(folder: Path, reference: Path, kills: int, length: float, seed: int) -> Row:
    """Row of SIGKILLs at random moments, to every process or only to the first; uses new stores until `kills` are done.

    On each store, runs are killed until one ends, at most LIMIT times; the next run must then end undisturbed.
    """
    chance, done, wrong, runs = random.Random(seed), 0, [], 0
    while done < kills:
        runs += 1
        place, known = folder / f"run{runs}", {}
        for attempt in range(LIMIT + 1):
            after = chance.uniform(0, length / 3) if done < kills and attempt < LIMIT else None
            ended = Attempt(place).end(after, group=chance.random() < 0.5)
            done += ended.killed
            now = built(place / "home")
            again = [name for name in known if now.get(name) != known[name]]
            wrong += [f"{name}: built again" for name in again]
            known = now
            if ended.code == 0:
                break
            if not ended.killed:
                wrong.append(ended.output[-500:])
                break
        wrong += faults_of(place, reference)
    row = {"tried": "SIGKILL at a random moment, then run again until done", "times": done}
    return row | {
        "survived": done if not wrong else 0,
        "wrong": wrong[:5],
        "found": f"{runs} {'stores' if runs > 1 else 'store'}, byte for byte, nothing built again",
    }


def signalled(folder: Path, reference: Path, number: signal.Signals, times: int, length: float, seed: int) -> Row:
    """Row of SIGINTs to every process, as by Ctrl-C, or SIGTERMs to the first: exit code, message, continuation."""
    chance, wrong, sent, runs = random.Random(seed), [], 0, 0
    code, message = SIGNALS[number]
    while sent < times and not wrong:
        runs += 1
        if runs > LIMIT:
            wrong.append(f"{LIMIT} runs ended without receiving {number.name}")
        place = folder / f"{number.name}{runs}"
        for _ in range(LIMIT):
            after = chance.uniform(0.05, length / 3) if sent < times else None
            ended = Attempt(place).end(after, number, group=number == signal.SIGINT)
            if ended.code == 0:
                break
            sent += ended.killed
            if ended.code != code or message not in ended.output or not ended.clean:
                wrong.append(f"exit {ended.code}: {ended.output[-800:]}")
            if not ended.killed:
                break
        wrong += faults_of(place, reference)
    row = {"tried": f"{number.name} at a random moment", "times": sent}
    return row | {"survived": sent - len(wrong), "wrong": wrong[:3], "found": f"exit code {code}, a message, continued"}


def in_training(folder: Path, reference: Path) -> list[Row]:
    """Rows of SIGKILL at step 55 of 60, and in the middle of writing the checkpoint of step 50."""
    rows = []
    for name, plant, first in (
        ("at step 55", _die_at_step, 51),
        ("while it wrote a checkpoint", _die_in_checkpoint, 1),
    ):
        place = folder / name.replace(" ", "-")
        os.environ["FAULTS_STEPS"] = str(place / "steps")
        place.mkdir(parents=True)
        first_run = Attempt(place, ALONE, plant).end()
        (place / "steps").unlink(missing_ok=True)
        second = Attempt(place, ALONE, _note_steps).end()
        steps = [int(line) for line in (place / "steps").read_text().split()]
        wrong = faults_of(place, reference)
        named = "worker process was killed" in first_run.output
        if second.code or first_run.code == 0 or not named or steps[0] != first:
            codes = f"exit {first_run.code}, {second.code}"
            wrong.append(f"{codes}; went on at step {steps[:1]}; {first_run.output[-300:]}")
        (place / "steps").unlink()
        found = f"went on at step {first}, byte for byte"
        rows.append({"tried": f"a worker killed {name}", "times": 1, "survived": int(not wrong)} | _said(wrong, found))
    return rows


def _note_steps(then: Plant | None = None) -> None:
    """Has training write each step to the file of FAULTS_STEPS; calls `then` at step 55."""
    from stagealign.train.trainer import PreferenceTrainer

    note = PreferenceTrainer._note

    def noted(self: Any, *given: Any) -> None:
        step = self.state.global_step + 1
        with open(os.environ["FAULTS_STEPS"], "a", encoding="utf-8") as file:
            file.write(f"{step}\n")
        if then is not None and step == 55:
            then()
        note(self, *given)

    PreferenceTrainer._note = noted  # type: ignore[method-assign]


def _die_at_step() -> None:
    _note_steps(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _die_in_checkpoint() -> None:
    from stagealign.train.trainer import PreferenceTrainer

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    PreferenceTrainer._save_optimizer_and_scheduler = die


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mounts a file system of this size. Raises OSError if the machine does not allow mounts."""
    place.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip() or "mount failed")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


def full_disk(folder: Path, reference: Path, sizes: tuple[str, ...]) -> Row:
    """Row of runs on a disk that is too small for the store, then made large enough."""
    wrong = []
    for size in sizes:
        place = folder / size
        try:
            with small_disk(place / "disk", size) as disk:
                full = Attempt(place, home=disk / "home").end()
                remount(disk, "size=64m")
                roomy = Attempt(place, home=disk / "home").end()
                faults = faults_of(place, reference, disk / "home")
                named = full.code in (1, 2) and "No space left on device" in full.output and full.clean
                if not named or roomy.code:
                    codes = f"exit {full.code}, then {roomy.code}"
                    faults.append(f"{codes}: {full.output[-600:]} {roomy.output[-300:]}")
                wrong += faults[:1]
        except OSError as error:
            return {"tried": "a full disk", "times": 0, "survived": 0, "wrong": [], "found": f"skipped: {error}"}
    row = {"tried": "a full disk, then room", "times": len(sizes), "survived": len(sizes) - len(wrong)}
    return row | _said(wrong, "named, and continued with room, byte for byte")


def read_only(folder: Path, reference: Path) -> list[Row]:
    """Rows of a read-only store: empty, and with all artifacts."""
    try:
        with small_disk(folder / "disk", "64m") as disk:
            remount(disk, "ro")
            empty = Attempt(folder, home=disk / "home").end()
            remount(disk, "rw")
            shutil.copytree(reference / "home", disk / "home", symlinks=True)
            remount(disk, "ro")
            complete = Attempt(folder, home=disk / "home").end()
            wrong = faults_of(folder, reference, disk / "home")
    except OSError as error:
        return [{"tried": "a read-only store", "times": 0, "survived": 0, "wrong": [], "found": f"skipped: {error}"}]
    named = empty.code == 2 and "Read-only file system" in empty.output and empty.clean
    rows = [{"tried": "a read-only store, empty", "times": 1, "survived": int(named)}]
    rows[0] |= _said([] if named else [empty.output[-600:]], "named before any work")
    wrong += [complete.output[-600:]] * bool(complete.code)
    row = {"tried": "a read-only store with all that is needed", "times": 1, "survived": int(not wrong)}
    return [*rows, row | _said(wrong, "all reused, byte for byte")]


def clock_back(folder: Path, reference: Path, length: float, seed: int) -> Row:
    """Row of two killed runs and a complete one, with a clock earlier than the files' times that also jumps back."""
    chance, wrong = random.Random(seed), []
    for days in (1, 2, 0):
        ended = Attempt(folder, plant=lambda days=days: _set_back(days)).end(
            chance.uniform(0, length) if days else None
        )
        for path in (folder / "home").rglob("*"):
            os.utime(path, (time.time() + 86400, time.time() + 86400))
    wrong = faults_of(folder, reference) + ([] if ended.code == 0 else [ended.output[-600:]])
    row = {"tried": "the clock set back by days, between runs and within", "times": 1, "survived": int(not wrong)}
    return row | _said(wrong, "byte for byte")


def _set_back(days: int) -> None:
    """Sets `time.time` back by `days`, and by another hour at every hundredth call."""
    real, calls = time.time, [0]

    def set_back() -> float:
        calls[0] += 1
        return real() - 86400 * days - 3600 * (calls[0] // 100)

    time.time = set_back


def reporting(folder: Path, reference: Path, times: int, seed: int) -> Row:
    """Row of reports killed while they are written; the next report must match the results."""
    chance, wrong = random.Random(seed), []
    shutil.copytree(reference / "results", folder / "results")
    length = Attempt(folder, REPORT).end().seconds
    for _ in range(times):
        for path in (folder / "reports").rglob("*.*"):
            path.unlink()
        Attempt(folder, REPORT).end(chance.uniform(length / 2, length))
    again, check = Attempt(folder, REPORT).end(), Attempt(folder, (*REPORT, "--check")).end()
    wrong = [f"{path}: left over" for path in folder.rglob("*.part")] + [check.output] * bool(again.code or check.code)
    row = {"tried": "SIGKILL while the report is written", "times": times, "survived": times if not wrong else 0}
    return row | _said(wrong, "written again, current")


def _said(wrong: list[str], found: str) -> Row:
    return {"wrong": wrong[:3], "found": found if not wrong else "not as it must be"}


def measure(folder: Path, kills: int, signals: int, seed: int) -> Iterator[Row]:
    """Yields each row as soon as it is measured."""
    reference = folder / "reference"
    undisturbed(folder / "warm")
    length = undisturbed(reference).seconds
    if wrong := faults_of(folder / "warm", reference):
        raise RuntimeError(f"two undisturbed runs differ: {wrong}")
    yield from in_training(folder / "training", reference)
    yield killed(folder / "killed", reference, kills, length, seed)
    for number in SIGNALS:
        yield signalled(folder / "signalled", reference, number, signals, length, seed)
    yield full_disk(folder / "full", reference, ("60k", "200k", "500k")[: max(1, signals)])
    yield from read_only(folder / "read-only", reference)
    yield clock_back(folder / "clock", reference, length, seed)
    yield reporting(folder / "reporting", reference, max(1, signals // 2), seed)
