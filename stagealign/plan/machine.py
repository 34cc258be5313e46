"""What this machine lacks for a plan."""

import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from stagealign.base.errors import CannotRun
from stagealign.base.server import KEYS
from stagealign.grid.cell import Cell, Scale
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.flops import ALPACA_EVAL, GIB
from stagealign.plan.needs import free_memory, needs_of
from stagealign.store.artifact import Artifact, Devices
from stagealign.store.home import default_home

JUDGING = ("alpaca_eval", "httpx", "tenacity")
"""Packages of the extras `eval` and `judge`."""


def check_machine(scale: Scale, cells: Iterable[Cell], gpu_here: bool = True, devices: Devices | None = None) -> None:
    """Raises CannotRun, naming everything that is missing, where this machine cannot do the scale.

    Without `gpu_here` the GPUs are a cluster's, which says itself what it has.
    """
    if scale.key != "paper":
        return
    cells = list(cells)
    weights = 2 * sum({cell.checkpoint.source: cell.checkpoint.parameters * 2 for cell in cells}.values())
    artifacts = {path: one for cell in cells for path, one in plan_run(cell, scale.seeds[0]).artifacts.items()}
    missing = lacking(scale, cells, weights, artifacts.values(), default_home(), gpu_here, devices)
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise CannotRun(f"--scale paper: this machine lacks\n{lines}\nUse `--scale lab` for stand-ins on a CPU.")


def lacking(
    scale: Scale,
    cells: Iterable[Cell],
    disk: float,
    artifacts: Iterable[Artifact],
    home: Path,
    gpu_here: bool = True,
    devices: Devices | None = None,
) -> list[str]:
    """What this machine lacks to build `artifacts`, which write `disk` bytes below `home`: one line each.

    GPU memory is asked for at paper scale alone, gated weights where a cell starts from them, a key where a judge is
    paid, and the room of every builder.
    """
    cells, artifacts = list(cells), list(artifacts)
    missing = list(_memory(scale, artifacts, gpu_here, devices or Devices()))
    free = free_disk(home)
    if free < disk:
        what = "weights" if scale.key == "paper" else "artifacts"
        missing.append(f"disk: {disk / GIB:.0f} GiB for {what}, {free / GIB:.0f} GiB free")
    gated = sorted({cell.checkpoint.source for cell in cells if cell.checkpoint.gated})
    if gated and not os.environ.get("HF_TOKEN"):
        missing.append(f"access to gated weights: {', '.join(gated)} (accept the licence, then set HF_TOKEN)")
    if scale.evaluation.judging and not any(os.environ.get(name, "").strip() for name in KEYS):
        missing.append(f"a key for the judge {ALPACA_EVAL.model}: set {' or '.join(KEYS)}")
    if scale.evaluation.judging and not all(map(find_spec, JUDGING)):
        missing.append("what asks the judge: pip install 'stagealign[eval,judge]'")
    return missing + [f"{name}: not part of this version" for name in absent(artifacts)]


def _memory(scale: Scale, artifacts: Iterable[Artifact], gpu_here: bool, devices: Devices) -> Iterator[str]:
    """What is short of memory: that of the GPU at paper scale, and the machine's own."""
    needs = {artifact.path: needs_of(artifact, scale, devices) for artifact in artifacts}
    if not needs or not gpu_here:
        return
    largest = max(needs, key=lambda path: needs[path].device_memory)
    if scale.key == "paper":
        memory, needed = gpu_memory(), needs[largest].device_memory
        if memory is None:
            yield "a GPU: none was found (`nvidia-smi`)"
        elif memory < needed:
            fix = "spread it with --devices N, or train adapters with --peft lora"
            if not largest.endswith("/policy"):
                fix = "one GPU does that whatever --devices says: use a larger one, or a model of the others with -k"
            yield f"GPU memory: {needed / GIB:.0f} GiB by estimate for {largest}, {memory / GIB:.0f} GiB found; {fix}"
    largest = max(needs, key=lambda path: needs[path].memory)
    if needs[largest].memory > free_memory():
        yield (
            f"memory: {needs[largest].memory / GIB:.1f} GiB by estimate for {largest}, {free_memory() / GIB:.1f} GiB "
            "are free"
        )


def free_disk(home: Path) -> int:
    """Bytes free where `home` is, or will be."""
    return shutil.disk_usage(next(one for one in (home, *home.parents) if one.exists())).free


def absent(artifacts: Iterable[Artifact]) -> list[str]:
    """`room:function` of each builder that is not there, told from the sources, without importing them."""
    names = dict.fromkeys(artifact.builder.function for artifact in artifacts)
    return [name for name in names if not _is_there(name)]


def _is_there(builder: str) -> bool:
    module, _, function = builder.partition(":")
    room = find_spec(module)
    source = Path(room.origin).read_text(encoding="utf-8") if room and room.origin else ""
    return f"\ndef {function}(" in source


def gpu_memory() -> int | None:
    """Bytes of the largest GPU's memory, asked of the driver so that torch need not load."""
    import subprocess

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return max(int(line) for line in lines) * 2**20 if lines else None
