"""Launch of a round in several processes, which share the model and the batch; never part of identity."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stagealign.base.batching import MICRO_BATCH
from stagealign.base.errors import CannotRun, StagealignError
from stagealign.base.processes import ToldToEnd, end_process, gpu_count, python_path, told_to_end
from stagealign.store.artifact import Devices, Facts

CONFIGS = Path(__file__).resolve().parent / "configs"
SHARDINGS = ("replicate", "fsdp2", "zero3")
"""Ways to share a model among processes: names of the `accelerate` configurations in `configs/`."""
FAILURE = "failure.txt"
"""File in which a process writes the error message if the input is at fault."""
LOG = "processes.log"


def cut(batch: int, processes: int, micro_batch: int | None) -> tuple[int, int]:
    """(micro-batch, accumulation steps) of each process for its share of a global batch.

    Raises StagealignError, naming the choices, if the global batch cannot be split evenly.
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
    """Raises StagealignError or CannotRun if the round cannot run with these devices."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise StagealignError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this command was started by a launcher, once per process; "
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
            f"--sharding {devices.sharding}: this scale trains its top {trained_layers} layers on the cached output "
            "of the others, and each process needs the whole of it; use --sharding replicate"
        )
    if not devices.launcher:  # processes of a launcher check this themselves, as only they know their number
        cut(batch, devices.count, devices.micro_batch)


def command(devices: Devices, trained_layers: int | None, gpus: int, work: Path) -> list[str]:
    """Command line that trains the round described by the file `work`, in all processes."""
    module = ["-m", "stagealign.train.worker", str(work)]
    if devices.launcher:
        return [*devices.launcher, *module]
    sharding = devices.sharding or ("fsdp2" if gpus and trained_layers is None else "replicate")
    return [*launch(sharding, devices.count), *module]


def launch(sharding: str, count: int) -> list[str]:
    """Command line of accelerate's launcher with one of our configurations."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{sharding}.yaml")]
    return [*words, "--num_processes", str(count), "--main_process_port", "0"]


def spread(devices: Devices, work: Mapping[str, object], out: Path, batch: int, trained_layers: int | None) -> Facts:
    """Trains a round in new processes, the first of which writes everything into `out`; returns the round's facts.

    `work`: description of the round, JSON-ready. Raises StagealignError with the reason of the process that failed.
    """
    gpus = gpu_count()
    check(devices, batch, trained_layers, gpus)
    described, facts, failure, log = (out / name for name in ("work.json", "facts.json", FAILURE, LOG))
    described.write_text(json.dumps({**work, "devices": asdict(devices)}), encoding="utf-8")
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
    result: Facts = json.loads(facts.read_text(encoding="utf-8"))
    for file in (described, facts, log):
        file.unlink()
    return result


def _run(words: list[str], said: Any, count: int) -> int:
    """Exit code of a command. Its processes end with this one, also on SIGTERM, and share its number of threads."""
    package = str(CONFIGS.parents[2])
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, *python_path()])}
    environment["OMP_NUM_THREADS"] = str(threads)
    try:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=environment)
    except OSError as error:
        raise StagealignError(f"{words[0]}: {error.strerror}; name a launcher that is installed") from error
    try:
        with told_to_end():
            return process.wait()
    except ToldToEnd:
        end_process(process)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        end_process(process)
