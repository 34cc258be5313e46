"""One attempt at a command, in a process of its own that can be killed, with faults planted in it beforehand.

The process is forked from one that has the heavy libraries loaded already, so that an attempt costs its work only; its
workers are forked too, where the command line's own are started afresh.
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
"""Facts of a record that two runs of the same work differ in."""
Plant = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    code: int
    """Exit code, or minus the signal's number."""
    output: str
    seconds: float
    killed: bool

    @property
    def clean(self) -> bool:
        """Whether nothing but messages was printed."""
        return "Traceback" not in self.output and "Exception" not in self.output


class Attempt:
    """A command under way in `folder`, with `folder/home` as its store unless another is named."""

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
        """Sends a signal to every process of the attempt, or to the first alone."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:  # no group yet
            os.kill(self.pid, number)

    def end(self, after: float | None = None, number: int = signal.SIGKILL, group: bool = True) -> Ended:
        """Waits for the end; `after` so many seconds it sends a signal, to the whole group or the first process."""
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
    """Loads what attempts need; nothing is computed, as threads do not survive a fork."""
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
    """The process of an attempt; it never returns."""
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
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
        torch.set_num_threads = lambda count: None  # one, whatever the machine: the same bytes, and no waiting
        if plant:
            plant()
        sys.argv = ["stagealign", *words]
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1 if code else 0)


def built(home: Path) -> dict[str, tuple[int, int]]:
    """Identity on the disk of every record that is there: one that was built again has another."""
    found = {}
    for path in home.rglob("record.json"):
        if ".part" not in str(path.parent):
            state = path.stat()
            found[str(path.parent.relative_to(home))] = (state.st_ino, state.st_mtime_ns)
    return found


def content(home: Path) -> dict[str, Any]:
    """Every file of every artifact: its bytes, or of a record what does not change from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_dir() or path.suffix in (".lock", ".holder", ".log"):
            continue
        if path.name == "record.json":
            record = json.loads(path.read_text(encoding="utf-8"))
            record["facts"] = {key: value for key, value in record["facts"].items() if key not in CHANGES}
            record.pop("seal")  # it covers the times too
            found[name] = record
        else:
            found[name] = path.read_bytes()
    return found


def numbers(results: Path) -> dict[str, Any]:
    """Every result, without what tells of machine, time and which call computed a reference pass."""
    found = {}
    for path in sorted((results / lab.SCALE).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        result.pop("seal")
        result["artifacts"] = {name: made["fingerprint"] for name, made in result["artifacts"].items()}
        for one in result["rounds"]:
            for rung in one["rungs"]:
                training = rung["training"]
                training.pop("pairs_per_second")
                counts = training.pop("reference")
                training["forwards"] = counts["computed"] + counts["reused"]
        found[path.name] = result
    return found


def faults_of(folder: Path, reference: Path, home: Path | None = None) -> list[str]:
    """What is not as in the run that nobody disturbed."""
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
    """Artifacts that the call says it built."""
    found = re.findall(r"^built (\d+), reused", output, re.MULTILINE)
    return int(found[-1]) if found else 0
