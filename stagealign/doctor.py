"""Looks a machine over: every artifact with its files, downloads, kept rows, results, and the environment.

Reads only. Each finding says what is wrong and what to do; what was made before checksums were kept is counted as not
checked.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from stagealign import assets, registry
from stagealign.errors import BadData, Damaged, StagealignError
from stagealign.pipeline import TASKS, plan_run
from stagealign.results import read_results, result_path
from stagealign.store import RECORD, Store, check_files, read_record, remove

NOT_ARTIFACTS = ("assets", "meter", "alpaca", "fetched")
DISK, MEMORY = 12.0, 4.0
"""GB free, and GB in all, below which the lab's grid is at risk."""
EXTRAS = {"eval": "alpaca_eval", "judge": "httpx", "vllm": "vllm", "cluster": "ray"}
"""A module of each extra."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    """`store`, `assets`, `kept`, `results` or `environment`."""
    state: Literal["ok", "note", "wrong"]
    what: str
    do: str = ""
    """What to do about it; empty where nothing is."""


def look(results: Path, deep: bool = False) -> list[Finding]:
    """Everything that was found; `deep` reads every file of the store, which takes a while."""
    store = Store()
    parts = (store_findings(store, deep), asset_findings(store.home), kept_findings(store.home))
    found = [finding for part in parts for finding in part]
    return [*found, *result_findings(results), *environment_findings(store.home)]


def plain(found: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON-ready values."""
    return {"wrong": sum(one.state == "wrong" for one in found), "findings": [asdict(one) for one in found]}


def write(found: Sequence[Finding], file: str) -> None:
    """Writes the findings as JSON; `-` is standard output."""
    text = json.dumps(plain(found), indent=1) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text, encoding="utf-8")


def store_findings(store: Store, deep: bool) -> Iterator[Finding]:
    """Each artifact's record, files and parents, what a build left over, and drift from the registry."""
    counts: Counter[str] = Counter()
    known = planned()
    for folder in _folders(store.home):
        path = folder.relative_to(store.home).as_posix()
        if folder.name.endswith(".part"):
            yield _part(folder, path)
            continue
        try:
            record = read_record(folder)
            if record is None:
                yield Finding("store", "wrong", f"{path}: files without a record, of unknown origin", remove(folder))
                continue
            check_files(folder, record, deep)
            yield from _relations(store, path, record, known)
        except StagealignError as error:
            yield Finding("store", "wrong", str(error).partition("; ")[0], remove(folder))
            continue
        counts["sound" if "files" in record else "old"] += 1
        strangers = _strangers(folder, record)
        if strangers:
            yield Finding(
                "store", "note", f"{path}: files that its builder did not write: {', '.join(strangers[:3])}",
                "look where they come from",
            )  # fmt: skip
    how = "by content" if deep else "by size; `--deep` reads their content"
    if counts["sound"]:
        yield Finding("store", "ok", f"{counts['sound']} artifacts are as they were written ({how})")
    if counts["old"]:
        yield Finding(
            "store", "note", f"{counts['old']} artifacts are from before files were listed: not checked",
            "nothing; or remove them to have them built and listed anew",
        )  # fmt: skip
    if not counts:
        yield Finding("store", "ok", f"{store.home}: no artifacts yet")


def planned() -> dict[str, set[str]]:
    """Path -> fingerprints that the registry gives it now, over all cells and the seeds of their scales."""
    found: dict[str, set[str]] = {}
    for key in registry.SCALES:
        for cell in registry.cells(key, extras=True):
            if cell.scale.task not in TASKS:
                continue
            for seed in cell.scale.seeds:
                for path, artifact in plan_run(cell, seed).artifacts.items():
                    found.setdefault(path, set()).add(artifact.fingerprint)
    return found


def _folders(home: Path) -> Iterator[Path]:
    """Folders of the store that hold files: artifacts, and what is not one."""
    if not home.is_dir():
        return
    for name, folders, files in os.walk(home):
        here = Path(name)
        if here == home:
            folders[:] = [one for one in folders if one not in NOT_ARTIFACTS]
            continue
        if RECORD in files or here.name.endswith(".part") or any(not one.endswith(".lock") for one in files):
            folders[:] = [one for one in folders if (here / one / RECORD).exists() or _holds_artifacts(here / one)]
            yield here


def _holds_artifacts(folder: Path) -> bool:
    return next(folder.rglob(RECORD), None) is not None


def _part(folder: Path, path: str) -> Finding:
    from filelock import FileLock, Timeout

    lock = folder.with_name(f"{folder.name.split('.')[0]}.lock")
    if lock.exists():
        try:
            with FileLock(lock, timeout=0):
                pass
        except (Timeout, OSError):
            return Finding("store", "ok", f"{path}: is being built now")
    return Finding(
        "store", "note", f"{path}: left over by a build that was interrupted",
        f"run its cell again, which takes it up; or {remove(folder)}",
    )  # fmt: skip


def _relations(store: Store, path: str, record: dict[str, Any], known: dict[str, set[str]]) -> Iterator[Finding]:
    """Drift from the registry, and inputs that are not those it was made from."""
    if path in known and record["fingerprint"] not in known[path]:
        yield Finding(
            "store", "wrong", f"{path}: built from another spec than the registry has now",
            f"{remove(store.home / path)} to build it anew, or keep both with another STAGEALIGN_HOME",
        )  # fmt: skip
    for name, parent in record.get("inputs", {}).items():
        try:
            other = read_record(store.home / parent)
        except Damaged:  # a finding of its own
            continue
        if other and other["fingerprint"] != record["identity"]["inputs"][name]:
            yield Finding(
                "store", "wrong", f"{path}: made from another {parent} than stands there now",
                remove(store.home / path),
            )  # fmt: skip


def _strangers(folder: Path, record: dict[str, Any]) -> list[str]:
    """Files at the top of an artifact that its record does not list."""
    if "files" not in record:
        return []
    return sorted(one.name for one in folder.iterdir() if one.is_file() and one.name not in {RECORD, *record["files"]}
                  and not one.name.endswith(".lock"))  # fmt: skip


def asset_findings(home: Path) -> Iterator[Finding]:
    """Each downloaded asset, by the hashes taken when it was unpacked."""
    absent = []
    for key, asset in assets.ASSETS.items():
        place = assets.folder(asset, home)
        if not assets.ready(asset, home):
            absent.append(key)
            if place.exists():
                yield Finding("assets", "wrong", f"{place}: incomplete", "`stagealign fetch`")
            continue
        found = assets.damaged(asset, home)
        if found:
            yield Finding("assets", "wrong", found, "`stagealign fetch`")
        else:
            yield Finding("assets", "ok", f"{key}: {asset.pinned}, by hash")
    if absent:
        yield Finding("assets", "note", f"not here: {', '.join(absent)}", "`stagealign fetch`, before going offline")


def kept_findings(home: Path) -> Iterator[Finding]:
    """Lines of the meter's and AlpacaEval's files that are not as they were written."""
    from stagealign.meter import whole_row

    for path in sorted([*home.glob("meter/*/*.jsonl"), *home.glob("alpaca/*.jsonl")]):
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        bad = sum(whole_row(line) is None for line in lines)
        name = path.relative_to(home).as_posix()
        if bad:
            yield Finding(
                "kept", "wrong", f"{name}: {bad} of {len(lines)} lines are damaged",
                "the same command asks them again; the others stay",
            )  # fmt: skip
        else:
            yield Finding("kept", "ok", f"{name}: {len(lines)} lines")


def result_findings(folder: Path) -> Iterator[Finding]:
    """Each result file: readable, of this schema, at its own place and of the registry's spec."""
    from stagealign.report.book import spec_moved

    for key in registry.SCALES:
        sound = 0
        for path, found in read_results(folder, key):
            if isinstance(found, BadData):
                yield Finding("results", "wrong", *_split(str(found)))
                continue
            again = f"`stagealign run --scale {key} -k {found.get('cell')}`"
            try:
                moved = spec_moved(found)
                placed = result_path(folder, found["scale"], found["cell"], found["seed"]) == path
                state = found["state"]
            except (KeyError, TypeError, AttributeError) as error:
                yield Finding("results", "wrong", f"{path}: lacks what a result has ({error})", again)
                continue
            if moved:
                yield Finding("results", "wrong", f"{path}: of another spec than the registry has now ({moved})", again)
            elif not placed:
                yield Finding("results", "wrong", f"{path}: holds another run than its name says", again)
            elif state == "failed":
                yield Finding("results", "note", f"{path}: failed, {found.get('reason')}", again)
            else:
                sound += 1
        if sound:
            yield Finding("results", "ok", f"{folder / key}: {sound} results are readable and of today's spec")


def _split(text: str) -> tuple[str, str]:
    what, _, do = text.rpartition("; ")
    return (what, do) if what else (text, "")


def environment_findings(home: Path) -> Iterator[Finding]:
    """Python, package versions, torch's build, accelerator, memory, disk, extras."""
    yield Finding("environment", "ok", f"python {sys.version.split()[0]}")
    yield from _packages()
    yield from _torch()
    yield from _room(home)
    import importlib.util

    there = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    yield Finding("environment", "ok", f"extras: {', '.join(there) or 'none'} of {', '.join(EXTRAS)}")


def _packages() -> Iterator[Finding]:
    """Installed versions against the lower bounds that the project was measured with, and against constraints.txt."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        needed = metadata.requires("stagealign") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "environment", "note", "stagealign runs from a folder without being installed: bounds not checked",
            "`pip install -e .`",
        )  # fmt: skip
        needed = []
    wrong = []
    for text in needed:
        one = Requirement(text)
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version}, needed {one.specifier}")
    for what in wrong:
        yield Finding("environment", "wrong", what, "`pip install -e . -c constraints.txt`")
    pins = Path(__file__).resolve().parent.parent / "constraints.txt"
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
            "environment", "note", f"other versions than the numbers were made with: {', '.join(others)}",
            "`pip install -c constraints.txt -e .`, where numbers must come back to the digit",
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
    there = next(one for one in (home, *home.parents) if one.exists())
    free = shutil.disk_usage(there).free / 1e9
    text = f"{free:.0f} GB free for {home}"
    if free < DISK:
        yield Finding("environment", "note", text, f"the lab's grid wants {DISK:.0f}; STAGEALIGN_HOME moves it")
    else:
        yield Finding("environment", "ok", text)
    if not os.access(there, os.W_OK):
        yield Finding("environment", "wrong", f"{there}: cannot be written", "point STAGEALIGN_HOME to another folder")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = os.cpu_count() or 1
    text = f"{memory:.0f} GB of memory, {cores} cores"
    if memory < MEMORY * cores:
        fit = max(1, int(memory / MEMORY))
        yield Finding("environment", "note", text, f"{MEMORY:.0f} GB a worker are safe: `--workers {fit}`")
    else:
        yield Finding("environment", "ok", text)
