"""Facts about where something was built; never identity."""

import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypedDict

RECORDED_PACKAGES = ("stagealign", "torch", "transformers", "trl", "accelerate", "scikit-learn", "spacy", "numpy")


class CodeVersion(TypedDict):
    """Commit of a checkout and whether it had uncommitted changes; None outside a checkout."""

    commit: str | None
    dirty: bool | None


class Surroundings(CodeVersion):
    """Versions, hardware and peak memory of the process that built something."""

    versions: dict[str, str]
    hardware: str
    threads: int | None
    """Threads of torch; None if it is not loaded."""
    peak_memory_mib: int


def surroundings() -> Surroundings:
    """Facts about where something was built; never identity."""
    torch = sys.modules.get("torch")
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        **code_version(),
        "versions": package_versions(),
        "hardware": hardware(),
        "threads": torch.get_num_threads() if torch else None,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20),
    }


@lru_cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that may change a number."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache
def hardware() -> str:
    """Processor and core count, and the GPU if torch is loaded and sees one."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    text = f"{model}, {os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    return f"{text}, {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else text


@lru_cache
def code_version() -> CodeVersion:
    """Commit of this checkout and whether it has uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    changes = git("status", "--porcelain", "--", "stagealign") if commit else None
    return {"commit": commit, "dirty": bool(changes) if commit else None}
