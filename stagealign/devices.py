"""Where a round trains: over how many processes, how they share the model and the batch. Execution, never identity."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stagealign.errors import CannotRun, StagealignError

CONFIGS = Path(__file__).resolve().parent / "configs"
SHARDINGS = ("replicate", "fsdp2", "zero3")
"""How processes share a model: names of the `accelerate` configurations in `configs/`."""
MICRO_BATCH = 4
"""Most pairs in one forward of one process where nothing else is asked for."""
FAILURE = "failure.txt"
"""A process leaves the reason here when the input is at fault."""
LOG = "processes.log"


@dataclass(frozen=True)
class Devices:
    """How a round's work is spread."""

    count: int = 1
    """Processes, one a GPU; on a machine without one, CPU processes over gloo."""
    sharding: str | None = None
    """One of SHARDINGS; None takes fsdp2 on several GPUs where every layer learns, else replicate."""
    micro_batch: int | None = None
    """Pairs in one forward of one process; None takes what fits, at most MICRO_BATCH."""
    activation_checkpointing: bool = False
    launcher: tuple[str, ...] = ()
    """The user's own command that starts the processes, such as `torchrun --nproc-per-node 8`."""
    policy_url: str | None = None
    """Of the server that samples, where one does; which engine it is is identity, where it stands is not."""
    gold: str | None = None
    """Folder of the classifier that evaluates, where it is a local one; its content is identity, its place is not."""

    @property
    def launched(self) -> bool:
        """Whether a round runs in processes of its own."""
        return self.count > 1 or self.sharding is not None or bool(self.launcher)


def cut(batch: int, processes: int, micro_batch: int | None) -> tuple[int, int]:
    """(micro-batch, accumulation): how each process gets through its share of a global batch.

    Raises StagealignError, naming the choices, where the global batch cannot be split evenly.
    """
    if batch % processes:
        choices = [str(n) for n in range(1, batch + 1) if batch % n == 0]
        raise StagealignError(
            f"--devices {processes}: a global batch of {batch} pairs cannot be split over {processes} processes; "
            f"choose one of {', '.join(choices)} (the batch is fixed by the spec)"
        )
    share = batch // processes
    fitting = [n for n in range(1, share + 1) if share % n == 0]
    if micro_batch is None:
        micro_batch = max(n for n in fitting if n <= MICRO_BATCH)
    if micro_batch not in fitting:
        over = "" if processes == 1 else f" over {processes} processes, {share} pairs each"
        raise StagealignError(
            f"micro-batch {micro_batch}: must divide the global batch of {batch}{over}; "
            f"choose one of {', '.join(map(str, fitting))}"
        )
    return micro_batch, share // micro_batch


def check(devices: Devices, batch: int, trained_layers: int | None, gpus: int) -> None:
    """Raises, before anything is built, where this machine or this batch cannot be spread so."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise StagealignError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this command was itself started by a launcher, once a process; "
            'start it once and name the launcher: `stagealign run --launcher "torchrun --nproc-per-node 2"`'
        )
    if devices.sharding is not None and devices.sharding not in SHARDINGS:
        raise StagealignError(f"--sharding {devices.sharding!r}: unknown; choose one of {', '.join(SHARDINGS)}")
    if gpus and devices.count > gpus:
        raise CannotRun(f"--devices {devices.count}: this machine has {gpus} GPU(s); use --devices {gpus} or fewer")
    if devices.sharding == "zero3" and not (gpus and find_spec("deepspeed")):
        lacks = "no GPU was found" if not gpus else "deepspeed is not installed (`pip install deepspeed`)"
        raise CannotRun(f"--sharding zero3: {lacks}; use --sharding fsdp2")
    if devices.sharding == "replicate" and devices.count == 1 and not devices.launcher:
        raise StagealignError("--sharding replicate: needs several processes; add --devices N")
    if trained_layers is not None and devices.sharding in ("fsdp2", "zero3"):
        raise StagealignError(
            f"--sharding {devices.sharding}: this scale trains its top {trained_layers} layers over the cached output "
            "of the rest, which is whole in each process; use --sharding replicate"
        )
    if not devices.launcher:  # how many processes a launcher starts, they find out themselves
        cut(batch, devices.count, devices.micro_batch)


def gpu_count() -> int:
    """GPUs that processes may use, asked of the driver so that torch need not load."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = sum(line.startswith("GPU ") for line in listed.splitlines())
    return found if visible is None else min(found, len([one for one in visible.split(",") if one.strip()]))


def command(devices: Devices, trained_layers: int | None, gpus: int, work: Path) -> list[str]:
    """The command line that trains what the file `work` describes, in all processes."""
    module = ["-m", "stagealign.train_worker", str(work)]
    if devices.launcher:
        return [*devices.launcher, *module]
    sharding = devices.sharding or ("fsdp2" if gpus and trained_layers is None else "replicate")
    return [*launch(sharding, devices.count), *module]


def launch(sharding: str, count: int) -> list[str]:
    """Accelerate's launcher with one of the configurations that ship."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{sharding}.yaml")]
    return [*words, "--num_processes", str(count), "--main_process_port", "0"]


def spread(devices: Devices, work: dict[str, Any], out: Path, batch: int, trained_layers: int | None) -> dict[str, Any]:
    """Facts of a round that was trained by processes of its own; their first one writes everything into `out`.

    `work` is what a process needs to know, as JSON. Raises StagealignError with the reason of the process that failed.
    """
    gpus = gpu_count()
    check(devices, batch, trained_layers, gpus)
    described, facts, failure, log = (out / name for name in ("work.json", "facts.json", FAILURE, LOG))
    described.write_text(json.dumps(work | {"devices": asdict(devices)}), encoding="utf-8")
    for old in (facts, failure):
        old.unlink(missing_ok=True)
    words = command(devices, trained_layers, gpus, described)
    with log.open("w", encoding="utf-8") as said:
        code = _run(words, said, devices.count)
    if failure.exists():
        raise StagealignError(failure.read_text(encoding="utf-8"))
    if code or not facts.exists():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise StagealignError(f"{shlex.join(words)}: ended with {code} and no policy; the end of {log}:\n{tail}")
    found: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    for file in (described, facts, log):
        file.unlink()
    return found


def _run(words: list[str], said: Any, count: int) -> int:
    """Exit code of a command whose processes end when this one does, or is told to; they share its threads."""
    package = str(CONFIGS.parent.parent)
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, *_python_path()])}
    environment["OMP_NUM_THREADS"] = str(threads)
    try:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=environment)
    except OSError as error:
        raise StagealignError(f"{words[0]}: {error.strerror}; name a launcher that is installed") from error
    try:
        with _told_to_end():
            return process.wait()
    except _Told:
        _end(process)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        _end(process)


@dataclass(frozen=True)
class Job:
    """One process of several that work side by side."""

    words: list[str]
    environment: dict[str, str]
    log: Path


def run_all(jobs: Sequence[Job]) -> list[int]:
    """Exit codes of processes that know nothing of each other: none waits for another.

    Once one fails the others are ended, and all end when this one does, or is told to. Raises StagealignError where a
    command cannot be started.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        with _told_to_end():
            for job in jobs:
                with job.log.open("w", encoding="utf-8") as said:
                    running.append(subprocess.Popen(job.words, stdout=said, stderr=said, env=job.environment))
            while any(one.poll() is None for one in running) and not any(one.poll() for one in running):
                time.sleep(0.1)
    except OSError as error:
        raise StagealignError(f"{jobs[0].words[0]}: {error.strerror}; name a program that is installed") from error
    except _Told:
        for one in running:
            _end(one)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        for one in running:
            _end(one)
    return [one.returncode for one in running]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher, which ends its processes; by force where it does not within half a minute."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _python_path() -> list[str]:
    return [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]


class _Told(BaseException):
    """SIGTERM came, with which an interrupted run ends its workers."""


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """While it lasts SIGTERM raises, where signals can be had: what this process started must end before it does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: Any) -> None:
        raise _Told

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
