"""What a measurement was made on, as a result names it; and what a process of its own took."""

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
    """Processor, cores and threads used, and the versions that decide about speed."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return {
        "processor": found[1].strip() if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }


def boundary(arguments: Sequence[str], home: Path, threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """What `stagealign boundary --json -` found, in a process of its own; seconds, processor seconds and peak MB."""
    code = "from benchmarks.boundary.machine import told; told()"
    command = [sys.executable, "-c", code, str(home / "peak"), "boundary", *arguments, "--json", "-"]
    settings = {"STAGEALIGN_HOME": str(home), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with open(home / "out", "w+b") as out, open(home / "err", "w+b") as err:
        started = time.perf_counter()
        running = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | settings)
        _, status, used = os.wait4(running.pid, 0)  # unlike wait(), it tells what this one child used
        running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if running.returncode:
            said = err.read().decode(errors="replace")
            raise RuntimeError(f"boundary {' '.join(arguments)}: ended with {running.returncode}\n{said[-2000:]}")
        found: dict[str, Any] = json.loads(out.read())
    peak = float((home / "peak").read_text(encoding="utf-8"))
    work = used.ru_utime + used.ru_stime
    return found, {"seconds": round(seconds, 2), "cpu_seconds": round(work, 2), "peak_mb": round(peak, 1)}


def told() -> None:
    """Runs the command line and leaves its peak memory in MB in the file that the first argument names."""
    from stagealign.cli.app import main

    place = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        place.write_text(str(peak_mb()), encoding="utf-8")


def peak_mb() -> float:
    """Largest memory of this process so far. `ru_maxrss` also counts what it was before it became this program."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        assert found is not None
        return int(found[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
