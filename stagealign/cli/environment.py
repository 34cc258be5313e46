"""Findings of `stagealign doctor` on the machine and its packages."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from stagealign.cli.finding import Finding

DISK, MEMORY = 12.0, 4.0
"""GB of free disk, and GB of memory for each core, below which the lab's grid is at risk."""
EXTRAS = {"eval": "alpaca_eval", "judge": "httpx", "vllm": "vllm", "cluster": "ray", "lora": "peft"}
"""Extra -> a module that it installs."""


def environment_findings(home: Path) -> Iterator[Finding]:
    """Findings on Python, package versions, torch's build, accelerator, memory, disk and extras."""
    yield Finding("environment", "ok", f"python {sys.version.split()[0]}")
    yield from _packages()
    yield from _torch()
    yield from _room(home)
    import importlib.util

    there = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    yield Finding("environment", "ok", f"extras: {', '.join(there) or 'none'} of {', '.join(EXTRAS)}")


def _packages() -> Iterator[Finding]:
    """Findings on installed versions, against the bounds of pyproject.toml and the pins of constraints.txt."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        needed = metadata.requires("stagealign") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "environment", "note", "stagealign is not installed but runs from its folder: bounds not checked",
            "`pip install -e .`",
        )  # fmt: skip
        needed = []
    wrong = []
    for text in needed:
        bound = Requirement(text)
        if bound.marker and not bound.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(bound.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{bound.name} is missing")
            continue
        if not bound.specifier.contains(version, prereleases=True):
            wrong.append(f"{bound.name} {version}, needed {bound.specifier}")
    for what in wrong:
        yield Finding("environment", "wrong", what, "`pip install -e . -c constraints.txt`")
    pins = Path(__file__).resolve().parents[2] / "constraints.txt"
    if not pins.exists():
        return
    others = []
    for line in pins.read_text(encoding="utf-8").splitlines():
        try:
            pin = Requirement(line.partition("#")[0].strip())
            version = metadata.version(pin.name)
        except (InvalidRequirement, metadata.PackageNotFoundError):
            continue
        if not pin.specifier.contains(version, prereleases=True):
            others.append(f"{pin.name} {version} ({pin.specifier})")
    if others:
        yield Finding(
            "environment", "note", f"other versions than those of the recorded numbers: {', '.join(others)}",
            "`pip install -c constraints.txt -e .`, if numbers must be equal to the last digit",
        )  # fmt: skip
    elif not wrong:
        yield Finding("environment", "ok", "packages are those of constraints.txt")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("environment", "wrong", f"torch cannot be imported ({error})", "`tools/install.sh`")
        return
    build = f"torch {torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Finding("environment", "ok", f"{build}; {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    elif torch.version.cuda:
        yield Finding("environment", "note", f"{build}, but no GPU can be used", "look at `nvidia-smi` and the driver")
    else:
        yield Finding("environment", "ok", f"{build}; no GPU is needed at lab scale")


def _room(home: Path) -> Iterator[Finding]:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    text = f"{free:.0f} GB free for {home}"
    if free < DISK:
        yield Finding(
            "environment", "note", text, f"the lab's grid needs {DISK:.0f} GB; point STAGEALIGN_HOME to another disk"
        )
    else:
        yield Finding("environment", "ok", text)
    if not os.access(there, os.W_OK):
        yield Finding("environment", "wrong", f"{there}: cannot be written", "point STAGEALIGN_HOME to another folder")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = os.cpu_count() or 1
    text = f"{memory:.0f} GB of memory, {cores} cores"
    if memory < MEMORY * cores:
        fit = max(1, int(memory / MEMORY))
        yield Finding("environment", "note", text, f"{MEMORY:.0f} GB for each worker are safe: `--workers {fit}`")
    else:
        yield Finding("environment", "ok", text)
