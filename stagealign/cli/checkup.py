"""Checks of a machine: artifacts with their files, downloads, kept rows, results, and the environment.

Reads only. Each finding says what is wrong and what to do. An artifact without checksums counts as not checked.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from stagealign.base.errors import BadData, Damaged, StagealignError
from stagealign.cli.environment import environment_findings
from stagealign.cli.finding import Finding
from stagealign.data import assets, download
from stagealign.grid import registry, scales
from stagealign.pipeline.kinds import TASKS
from stagealign.pipeline.rounds import plan_run
from stagealign.store.folder import Store
from stagealign.store.record import RECORD, Record, check_files, read_record, remove
from stagealign.store.results import read_results, result_path

NOT_ARTIFACTS = ("assets", "meter", "alpaca", "fetched")
"""Folders of the store that hold no artifacts."""


def look(results: Path, deep: bool = False) -> list[Finding]:
    """Findings of all checks; `deep` reads every file of the store, which takes a while."""
    store = Store()
    parts = (store_findings(store, deep), asset_findings(store.home), kept_findings(store.home))
    findings = [finding for part in parts for finding in part]
    return [*findings, *result_findings(results), *environment_findings(store.home)]


def store_findings(store: Store, deep: bool) -> Iterator[Finding]:
    """Findings on each artifact's record, files and parents, on leftovers of builds, and on drift from the registry."""
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
            check_files(folder, record.get("files", {}), deep)
            yield from _relations(store, path, record, known)
        except StagealignError as error:
            yield Finding("store", "wrong", str(error).partition("; ")[0], remove(folder))
            continue
        counts["sound" if "files" in record else "old"] += 1
        strangers = _strangers(folder, record)
        if strangers:
            yield Finding(
                "store", "note", f"{path}: files that its builder did not write: {', '.join(strangers[:3])}",
                "find out where they come from",
            )  # fmt: skip
    how = "by content" if deep else "by size; `--deep` reads their content"
    if counts["sound"]:
        yield Finding("store", "ok", f"{counts['sound']} artifacts are as they were written ({how})")
    if counts["old"]:
        yield Finding(
            "store", "note", f"{counts['old']} artifacts have no list of files: not checked",
            "nothing; or remove them, and rebuild them with a list of files",
        )  # fmt: skip
    if not counts:
        yield Finding("store", "ok", f"{store.home}: no artifacts yet")


def planned() -> dict[str, set[str]]:
    """Artifact path -> its fingerprints by today's registry, over all cells and the seeds of their scales."""
    fingerprints: dict[str, set[str]] = {}
    for key in scales.SCALES:
        for cell in registry.cells(key, extras=True):
            if cell.scale.task not in TASKS:
                continue
            for seed in cell.scale.seeds:
                for path, artifact in plan_run(cell, seed).artifacts.items():
                    fingerprints.setdefault(path, set()).add(artifact.fingerprint)
    return fingerprints


def _folders(home: Path) -> Iterator[Path]:
    """Folders of the store that hold files: artifacts, unfinished builds and folders of unknown origin."""
    if not home.is_dir():
        return
    for name, folders, files in os.walk(home):
        here = Path(name)
        if here == home:
            folders[:] = [folder for folder in folders if folder not in NOT_ARTIFACTS]
            continue
        if RECORD in files or here.name.endswith(".part") or any(not file.endswith(".lock") for file in files):
            folders[:] = [
                folder for folder in folders if (here / folder / RECORD).exists() or _holds_artifacts(here / folder)
            ]
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
        "store", "note", f"{path}: left over by an interrupted build",
        f"run its cell again to continue it; or {remove(folder)}",
    )  # fmt: skip


def _relations(store: Store, path: str, record: Record, known: dict[str, set[str]]) -> Iterator[Finding]:
    """Findings on drift from the registry, and on inputs that changed since the artifact was built."""
    if path in known and record["fingerprint"] not in known[path]:
        yield Finding(
            "store", "wrong", f"{path}: built from another spec than the registry has now",
            f"{remove(store.home / path)} to rebuild it, or keep both with another STAGEALIGN_HOME",
        )  # fmt: skip
    for name, parent in record.get("inputs", {}).items():
        try:
            other = read_record(store.home / parent)
        except Damaged:  # the parent has its own finding
            continue
        if other and other["fingerprint"] != record["identity"]["inputs"][name]:
            yield Finding(
                "store", "wrong", f"{path}: built from another {parent} than the store has now",
                remove(store.home / path),
            )  # fmt: skip


def _strangers(folder: Path, record: Record) -> list[str]:
    """Files at the top of an artifact that its record does not list."""
    if "files" not in record:
        return []
    return sorted(file.name for file in folder.iterdir() if file.is_file()
                  and file.name not in {RECORD, *record["files"]} and not file.name.endswith(".lock"))  # fmt: skip


def asset_findings(home: Path) -> Iterator[Finding]:
    """Findings on each downloaded asset, by the hashes taken when it was unpacked."""
    absent = []
    for key, asset in assets.ASSETS.items():
        place = download.folder(asset, home)
        if not download.ready(asset, home):
            absent.append(key)
            if place.exists():
                yield Finding("assets", "wrong", f"{place}: incomplete", "`stagealign fetch`")
            continue
        damage = download.damaged(asset, home)
        if damage:
            yield Finding("assets", "wrong", damage, "`stagealign fetch`")
        else:
            yield Finding("assets", "ok", f"{key}: {asset.pinned}, by hash")
    if absent:
        yield Finding(
            "assets", "note", f"not downloaded: {', '.join(absent)}", "`stagealign fetch`, before going offline"
        )


def kept_findings(home: Path) -> Iterator[Finding]:
    """Findings on each file of kept rows of the meter and of AlpacaEval: its number of lines, and damaged ones."""
    from stagealign.store.kept import whole_row

    yield from _outdated_samples(home)
    for path in sorted([*home.glob("meter/*/*.jsonl"), *home.glob("alpaca/*.jsonl")]):
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        bad = sum(whole_row(line) is None for line in lines)
        name = path.relative_to(home).as_posix()
        if bad:
            yield Finding(
                "kept", "wrong", f"{name}: {bad} of {len(lines)} lines are damaged",
                "run the same command again: it asks for these again and keeps the others",
            )  # fmt: skip
        else:
            yield Finding("kept", "ok", f"{name}: {len(lines)} lines")


def _outdated_samples(home: Path) -> Iterator[Finding]:
    """Finding on samples that earlier versions of the meter kept and no measurement uses any more."""
    from stagealign.boundary.meter import outdated

    folders = [place for place in sorted(home.glob("meter/*")) if place.is_dir() and outdated(place)]
    if folders:
        size = sum(file.stat().st_size for place in folders for file in place.rglob("*") if file.is_file())
        words = " ".join(shlex.quote(str(place)) for place in folders)
        yield Finding(
            "kept", "note", f"meter: samples of {len(folders)} policies ({size / 1e6:.1f} MB) are of earlier versions, "
            "and no measurement uses them", f"`rm -r {words}` removes them",
        )  # fmt: skip


def result_findings(folder: Path) -> Iterator[Finding]:
    """Findings on each result file: whether it is readable, at its own path and of the registry's spec."""
    from stagealign.report.read.cells import words_for
    from stagealign.report.read.moved import spec_moved

    for key in scales.SCALES:
        sound = 0
        for path, result in read_results(folder, key):
            if isinstance(result, BadData):
                yield Finding("results", "wrong", *_split(str(result)))
                continue
            again = f"`stagealign run {words_for(result)}`"
            try:
                moved = spec_moved(result)
                placed = result_path(folder, result["scale"], result["cell"], result["seed"]) == path
                state = result["state"]
            except (KeyError, TypeError, AttributeError) as error:
                yield Finding("results", "wrong", f"{path}: lacks a field of a result ({error})", again)
                continue
            if moved:
                yield Finding("results", "wrong", f"{path}: of another spec than the registry has now ({moved})", again)
            elif not placed:
                yield Finding("results", "wrong", f"{path}: holds another run than its name says", again)
            elif state == "failed":
                yield Finding("results", "note", f"{path}: failed, {result.get('reason')}", again)
            else:
                sound += 1
        if sound:
            yield Finding("results", "ok", f"{folder / key}: {sound} results are readable and of today's spec")


def _split(text: str) -> tuple[str, str]:
    """(what is wrong, what to do) of an error message."""
    what, _, do = text.rpartition("; ")
    return (what, do) if what else (text, "")
