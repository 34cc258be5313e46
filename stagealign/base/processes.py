"""Processes of this machine that end when this one does."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError


def gpu_count() -> int:
    """Number of GPUs that processes may use. Asks the driver, so that torch is not loaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return count if visible is None else min(count, len([device for device in visible.split(",") if device.strip()]))


@dataclass(frozen=True)
class Job:
    """One of several processes that run at the same time."""

    words: list[str]
    environment: dict[str, str]
    log: Path


def run_all(jobs: Sequence[Job]) -> list[int]:
    """Exit codes of independent processes, in the order of `jobs`.

    If one fails, the others are ended. All are ended if this process ends or receives SIGTERM. Raises StagealignError
    if a command cannot be started.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        with told_to_end():
            for job in jobs:
                with job.log.open("w", encoding="utf-8") as log:
                    running.append(subprocess.Popen(job.words, stdout=log, stderr=log, env=job.environment))
            while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
                time.sleep(0.1)
    except OSError as error:
        raise StagealignError(f"{jobs[0].words[0]}: {error.strerror}; name a program that is installed") from error
    except ToldToEnd:
        for process in running:
            end_process(process)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        for process in running:
            end_process(process)
    return [process.returncode for process in running]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher, which ends its own processes. Kills it if it still runs after 30 seconds."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def python_path() -> list[str]:
    """Folders of PYTHONPATH, without empty ones."""
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


class ToldToEnd(BaseException):
    """This process received SIGTERM, with which an interrupted run ends its workers."""


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Raises ToldToEnd on SIGTERM, so that child processes can be ended first. No-op outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: Any) -> None:
        raise ToldToEnd

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
