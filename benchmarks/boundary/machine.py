"""Hardware of a measurement, and the command in a separate process with its time and memory."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def hardware(threads: int) -> dict[str, Any]:
    """Processor, cores, threads used, and the versions of libraries that affect speed."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {package: metadata.version(package) for package in ("torch", "transformers")},
    }


def boundary(arguments: Sequence[str], home: Path, threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Output of `stagealign boundary --json -` in a separate process, and its seconds, processor seconds, peak MB."""
    code = "from benchmarks.boundary.machine import main_with_peak; main_with_peak()"
    command = [sys.executable, "-c", code, str(home / "peak"), "boundary", *arguments, "--json", "-"]
    settings = {"STAGEALIGN_HOME": str(home), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with open(home / "out", "w+b") as out, open(home / "err", "w+b") as err:
        started = time.perf_counter()
        running = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | settings)
        _, status, used = os.wait4(running.pid, 0)  # unlike wait(), it reports the resources of this child
        running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if running.returncode:
            output = err.read().decode(errors="replace")
            raise RuntimeError(f"boundary {' '.join(arguments)}: ended with {running.returncode}\n{output[-2000:]}")
        measured: dict[str, Any] = json.loads(out.read())
    peak = float((home / "peak").read_text(encoding="utf-8"))
    work = used.ru_utime + used.ru_stime
    return measured, {"seconds": round(seconds, 2), "cpu_seconds": round(work, 2), "peak_mb": round(peak, 1)}


def main_with_peak() -> None:
    """Runs the command line and writes its peak memory in MB to the file that the first argument names."""
    from stagealign.cli.app import main

    place = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        place.write_text(str(peak_mb()), encoding="utf-8")


def peak_mb() -> float:
    """Peak memory of this process in MB. `ru_maxrss` would also count the memory before the process's exec."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        assert peak is not None
        return int(peak[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
