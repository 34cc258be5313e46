"""Checks of this machine: the memory, disk, access and code that a plan needs."""

import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from stagealign.base.server import KEYS
from stagealign.grid.prices import PaidJudge
from stagealign.plan.flops import GIB
from stagealign.plan.needs import free_memory, needs_of
from stagealign.plan.plan import Plan, PricedArtifact
from stagealign.store.artifact import Artifact, Devices


def lacking(plan: Plan, home: Path, devices: Devices = Devices(), gpu_here: bool = True) -> list[str]:  # noqa: B008
    """Requirements of the plan's missing artifacts that this machine does not meet, one line each.

    Checks memory, the disk of `home`, GPU memory at scales made for GPUs, access to gated weights, key and packages of
    a paid judge, and the code of every kind. Without `gpu_here` a cluster builds, and memory is not checked here.
    """
    if not plan.to_build:
        return []
    missing = list(_memory(plan, gpu_here, devices))
    free = free_disk(home)
    if free < plan.disk:
        missing.append(f"disk: {plan.disk / GIB:.0f} GiB for artifacts, {free / GIB:.0f} GiB free")
    gated = sorted({run.cell.checkpoint.source for run in plan.runs if run.cell.checkpoint.gated})
    if gated and not os.environ.get("HF_TOKEN"):
        missing.append(f"access to gated weights: {', '.join(gated)} (accept the licence, then set HF_TOKEN)")
    if not any(os.environ.get(name, "").strip() for name in KEYS):
        names = " or ".join(KEYS)
        missing += [f"a key for the judge {model}: set {names}" for model in paid_models(plan.to_build)]
    for judge in judges_of(plan.to_build):
        if not all(map(find_spec, judge.packages)):
            missing.append(f"packages for the judge: pip install 'stagealign[{judge.extras}]'")
    return missing + [f"{name}: not part of this version" for name in absent(plan.missing)]


def judges_of(items: Iterable[PricedArtifact]) -> list[PaidJudge]:
    """Judges that have to be paid to evaluate with these artifacts, each once."""
    rows = [item.scale.preference.gold_kinds.judge for item in items if _evaluates(item)]
    return list(dict.fromkeys(judge for judge in rows if judge is not None))


def paid_models(items: Iterable[PricedArtifact]) -> list[str]:
    """Names of the judges that have to be paid to build these artifacts, each once."""
    items = [item for item in items if item.cost.judge_dollars]
    labelling = [item.scale.preference.oracle_named for item in items if not _evaluates(item)]
    names = [*(judge.model for judge in judges_of(items)), *labelling]
    return list(dict.fromkeys(name for name in names if name is not None))


def _evaluates(item: PricedArtifact) -> bool:
    return bool(item.cost.judge_dollars) and item.artifact.role == "annotations"


def _memory(plan: Plan, gpu_here: bool, devices: Devices) -> Iterator[str]:
    """Lines about too little memory: of the GPU at scales made for GPUs, and of the machine itself."""
    if not gpu_here:
        return
    needs = {item.artifact.path: needs_of(item.artifact, item.scale, devices) for item in plan.to_build}
    largest = max(needs, key=lambda path: needs[path].device_memory)
    if plan.scale.on_gpus:
        memory, needed = gpu_memory(), needs[largest].device_memory
        if memory is None:
            yield "a GPU: none was found (`nvidia-smi`)"
        elif memory < needed:
            fix = "spread it with --devices N, or train adapters with --peft lora"
            if not plan.artifacts[largest].kind.trains:
                fix = "--devices does not spread this artifact; use a larger GPU, or choose another model with -k"
            yield (f"GPU memory: {needed / GIB:.0f} GiB by estimate for {largest}, {memory / GIB:.0f} GiB found; {fix}")
    largest = max(needs, key=lambda path: needs[path].memory)
    if needs[largest].memory > free_memory():
        yield (
            f"memory: {needs[largest].memory / GIB:.1f} GiB by estimate for {largest}, "
            f"{free_memory() / GIB:.1f} GiB are free"
        )


def free_disk(home: Path) -> int:
    """Free bytes on the disk of `home`, which may not exist yet."""
    return shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free


def absent(artifacts: Iterable[Artifact]) -> list[str]:
    """`module:function` of each kind whose code is missing; reads the sources without importing them."""
    names = dict.fromkeys(artifact.kind.function for artifact in artifacts)
    return [name for name in names if not _is_there(name)]


def _is_there(place: str) -> bool:
    module, _, function = place.partition(":")
    spec = find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return f"\ndef {function}(" in source


def gpu_memory() -> int | None:
    """Bytes of the largest GPU's memory; None without a GPU. Asks the driver, so that torch is not loaded."""
    import subprocess

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return max(int(line) for line in lines) * 2**20 if lines else None
