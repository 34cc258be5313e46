"""Attempt at a command in a separate process, which can be killed and can have faults planted.

The process is forked from one that has loaded the heavy libraries, so an attempt costs only its work. Its workers are
forked too, whereas the command line spawns its workers.
"""

import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import lab

RUN = ("run", "-k", lab.CELLS, "--scale", lab.SCALE, "--workers", "2")
REPORT = ("report", "--scale", lab.SCALE)
CHANGES = ("seconds", "peak_memory_mib", "hardware", "threads", "commit", "dirty", "versions")
"""Facts of a record that differ between two runs of the same work."""
Plant = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """Outcome of an attempt."""

    code: int
    """Exit code, or minus the number of the signal that ended it."""
    output: str
    seconds: float
    killed: bool

    @property
    def clean(self) -> bool:
        """Whether the output holds no traceback."""
        return "Traceback" not in self.output and "Exception" not in self.output


class Attempt:
    """Running command in `folder`; its store is `home`, by default `folder/home`."""

    def __init__(
        self, folder: Path, words: tuple[str, ...] = RUN, plant: Plant | None = None, home: Path | None = None
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"output-{time.monotonic_ns()}.txt"
        self.log.touch()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _child(folder, words, plant, home or folder / "home", self.log)

    def kill(self, number: int, group: bool) -> None:
        """Sends a signal to every process of the attempt, or only to the first."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:  # the child has not made its group yet
            os.kill(self.pid, number)

    def end(self, after: float | None = None, number: int = signal.SIGKILL, group: bool = True) -> Ended:
        """Waits for the end; `after` this many seconds sends a signal to the whole group or to the first process."""
        killed = False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if after is not None and not killed and time.monotonic() - self.started >= after:
                self.kill(number, group)
                killed = True
            time.sleep(0.01)
        return Ended(
            os.waitstatus_to_exitcode(status),
            self.log.read_text(encoding="utf-8", errors="replace"),
            time.monotonic() - self.started,
            killed,
        )


def preload() -> None:
    """Imports the modules that attempts need. Computes nothing, because threads do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    import transformers.models.llama.modeling_llama  # noqa: F401

    import stagealign.cli.app
    import stagealign.cli.run
    import stagealign.data.films
    import stagealign.evaluate.describe
    import stagealign.evaluate.scores
    import stagealign.oracle.label
    import stagealign.oracle.learned
    import stagealign.policy.sample
    import stagealign.policy.start
    import stagealign.report.pages.overview
    import stagealign.train.trainer  # noqa: F401

    lab.install()


def _child(folder: Path, words: tuple[str, ...], plant: Plant | None, home: Path, log: Path) -> None:
    """Runs the attempt in the forked process and exits; never returns."""
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it from the start
        os.setsid()
        os.chdir(folder)
        os.environ["STAGEALIGN_HOME"] = str(home)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        import torch

        from stagealign.cli.app import main
        from stagealign.cli.output import console
        from stagealign.execute import processes as execute

        console.width = 200
        execute.get_context = lambda _: multiprocessing.get_context("fork")
        torch.set_num_threads = lambda count: None  # one thread on every machine: equal bytes, no contention
        if plant:
            plant()
        sys.argv = ["stagealign", *words]
        main()
    except SystemExit as exit_request:
        code = exit_request.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1 if code else 0)


def built(home: Path) -> dict[str, tuple[int, int]]:
    """Artifact -> (inode, time) of its record, which change if it is built again."""
    records = {}
    for path in home.rglob("record.json"):
        if ".part" not in str(path.parent):
            state = path.stat()
            records[str(path.parent.relative_to(home))] = (state.st_ino, state.st_mtime_ns)
    return records


def content(home: Path) -> dict[str, Any]:
    """File -> its bytes, for every artifact; for a record, the fields that do not change between runs."""
    files: dict[str, Any] = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_dir() or path.suffix in (".lock", ".holder", ".log"):
            continue
        if path.name == "record.json":
            record = json.loads(path.read_text(encoding="utf-8"))
            record["facts"] = {key: value for key, value in record["facts"].items() if key not in CHANGES}
            record.pop("seal")  # it covers the times too
            files[name] = record
        else:
            files[name] = path.read_bytes()
    return files


def numbers(results: Path) -> dict[str, Any]:
    """File -> result, without machine, times and which call computed a reference pass."""
    by_file = {}
    for path in sorted((results / lab.SCALE).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        result.pop("seal")
        result["artifacts"] = {name: artifact["fingerprint"] for name, artifact in result["artifacts"].items()}
        for entry in result["rounds"]:
            for rung in entry["rungs"]:
                training = rung["training"]
                training.pop("pairs_per_second")
                counts = training.pop("reference")
                training["forwards"] = counts["computed"] + counts["reused"]
        by_file[path.name] = result
    return by_file


def faults_of(folder: Path, reference: Path, home: Path | None = None) -> list[str]:
    """Differences from the undisturbed run in store and results, and files left over."""
    home = home or folder / "home"
    ours, theirs = content(home), content(reference / "home")
    wrong = [f"{name}: missing" for name in theirs.keys() - ours.keys()]
    wrong += [f"{name}: left over" for name in ours.keys() - theirs.keys()]
    wrong += [f"{name}: other content" for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    if numbers(folder / "results") != numbers(reference / "results"):
        wrong.append("results: other numbers")
    wrong += [f"{path}: left over" for path in folder.rglob("*.part")]
    return wrong


def builds(output: str) -> int:
    """Number of artifacts that the call reports as built."""
    counts = re.findall(r"^built (\d+), reused", output, re.MULTILINE)
    return int(counts[-1]) if counts else 0
