"""One small JSON file a run. Copying files merges results, and the report reads nothing else.

`store.result_types` describes every field; all numbers are of this run.
"""

import fcntl
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast, get_args

from stagealign.base.errors import BadData, CannotRun
from stagealign.base.shapes import misfit
from stagealign.base.words import why
from stagealign.store.artifact import Artifact
from stagealign.store.checksums import SEAL, broken, sealed
from stagealign.store.files import write_text
from stagealign.store.result_types import CapabilityEntry, DoneRungEntry, Result, RungEntry, RunState, is_done
from stagealign.store.typed_shape import shape_of

SCHEMA = 1
ARCHIVE = "archive"
"""Folder, beside those of the scales, with the results of earlier versions."""
SHAPE = shape_of(Result)
"""Fields that readers rely on; a file may hold more."""
DONE_RUNG = shape_of(DoneRungEntry)
STATES = get_args(RunState)


def result_path(folder: Path, scale: str, cell: str, seed: int) -> Path:
    """`<folder>/<scale>/<cell>-seed<k>.json`."""
    return folder / scale / f"{cell}-seed{seed}.json"


def write_result(folder: Path, result: Result) -> Path:
    """Path of the written result; measured rungs of the old file with the same fingerprint are kept.

    Raises CannotRun if the folder cannot be written.
    """
    path = result_path(folder, result["scale"], result["cell"], result["seed"])
    with _alone(path.parent):
        if path.exists():
            with suppress(BadData):  # a damaged file is repaired by running again
                _keep_rungs(read_result(path), result)
        write_text(path, json.dumps(sealed(result), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder, so that concurrent writers keep each other's rungs; no lock if its file system has none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CannotRun(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from error
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _keep_rungs(old: Result, new: Result) -> None:
    """Copies rungs that `old` has measured and `new` has not run into `new`, if their fingerprints are equal.

    A rung of both results keeps the larger count of computed reference forwards, so that each forward counts as
    computed once.
    """
    new["artifacts"] = old.get("artifacts", {}) | new.get("artifacts", {})
    _keep_capability(old, new)
    if "claims" in old:
        new["claims"] = new.get("claims", {}) | old["claims"]  # the claims at the time of the measurement
    for before, after in zip(old.get("rounds", []), new.get("rounds", []), strict=False):
        done = {rung["fingerprint"]: rung for rung in before["rungs"] if is_done(rung)}
        after["rungs"] = [
            done.get(rung["fingerprint"], rung) if rung["state"] == "not run" else rung for rung in after["rungs"]
        ]
        for rung in after["rungs"]:
            kept = done.get(rung["fingerprint"])
            if kept is not None and is_done(rung):
                _keep_forwards(kept, rung)


def _keep_forwards(old: DoneRungEntry, new: DoneRungEntry) -> None:
    """Replaces the count of reference forwards in `new` if `old` computed more."""
    before, now = (rung.get("training", {}).get("reference") for rung in (old, new))
    if before and now and before["computed"] > now["computed"]:
        new["training"]["reference"] = before


def _keep_capability(old: Result, new: Result) -> None:
    """Copies the capability entries of the policies in `new` from `old`; entries of `new` win."""
    policies = {artifact["fingerprint"] for artifact in new["artifacts"].values() if "fingerprint" in artifact}
    measured: dict[str, CapabilityEntry] = {
        name: entry for name, entry in old.get("capability", {}).items() if entry["policy"] in policies
    }
    if kept := measured | new.get("capability", {}):
        new["capability"] = kept


def stands(path: Path, rungs: set[str], measured: Collection[str] = ()) -> bool:
    """Whether a done result with all of these rungs and capability entries (fingerprints) is at `path`.

    Any machine may have made it.
    """
    try:
        old = read_result(path)
    except (FileNotFoundError, BadData):
        return False
    known = {entry["fingerprint"] for entry in old.get("capability", {}).values()}
    return old["state"] == "done" and rungs <= done_rungs(old) and known.issuperset(measured)


def says_all(path: Path, new: Result) -> bool:
    """Whether the result at `path` has every field of `new`; an older version may have written fewer."""
    old = read_result(path)
    rounds = zip(old["rounds"], new["rounds"], strict=True)
    return new.keys() <= old.keys() and all(now.keys() <= before.keys() for before, now in rounds)


def done_rungs(result: Result) -> set[str]:
    """Fingerprints of the measured rungs."""
    rungs = (rung for entry in result["rounds"] for rung in entry["rungs"])
    return {rung["fingerprint"] for rung in rungs if rung["state"] == "done"}


def read_result(path: Path) -> Result:
    """One run's result.

    Raises BadData, with the command that rebuilds the result, for a damaged file or another schema.
    """
    again = f"run it again: `stagealign run --scale {path.parent.name} -k {path.stem.rpartition('-seed')[0]}`"
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: damaged ({why(error)}); {again}") from error
    if isinstance(loaded, dict) and broken(loaded):
        raise BadData(f"{path}: damaged (its content changed since it was written); {again}")
    if not isinstance(loaded, dict) or loaded.get("schema") != SCHEMA:
        schema = loaded.get("schema") if isinstance(loaded, dict) else type(loaded).__name__
        raise BadData(f"{path}: result schema {schema!r}, this version reads {SCHEMA}; {again}")
    loaded.pop(SEAL, None)
    wrong = misfit(loaded, SHAPE) or _misfit(cast(Result, loaded))
    if wrong:
        raise BadData(f"{path}: damaged ({wrong}); {again}")
    return cast(Result, loaded)


def _misfit(result: Result) -> str | None:
    """First fault that the shape of `Result` does not cover; None if there is none."""
    if result["state"] not in STATES:
        return f"state is none of {', '.join(STATES)}"
    rungs: Iterator[tuple[str, RungEntry]] = (
        (f"rounds.{number}.rungs.{place}", rung)
        for number, entry in enumerate(result["rounds"])
        for place, rung in enumerate(entry["rungs"])
    )
    faults = (misfit(rung, DONE_RUNG, where) for where, rung in rungs if is_done(rung))
    return next((fault for fault in faults if fault), None)


def made_with(results: Path, artifact: Artifact) -> dict[str, list[str]]:
    """Revision of an artifact's source -> cells whose results used that revision; damaged results are skipped.

    `results`: the folder of one scale.
    """
    cells: dict[str, list[str]] = {}
    for _, result in read_results(results.parent, results.name):
        if isinstance(result, BadData):
            continue
        entry = result.get("artifacts", {}).get(artifact.path, {})
        if entry.get("fingerprint") == artifact.fingerprint and entry.get("revision"):
            cells.setdefault(entry["revision"], []).append(result["cell"])
    return cells


def archives(folder: Path, scale: str) -> list[tuple[str, Path]]:
    """(version, folder of results) of each version whose results of the scale were moved aside, newest first.

    They lie in `<folder>/archive/<version>/<scale>/`. A version that samples or trains differently moves them there.
    """
    found = [place for place in (folder / ARCHIVE).glob("*") if any((place / scale).glob("*-seed*.json"))]
    newest = sorted(found, key=lambda place: [int(part) for part in re.findall(r"\d+", place.name)], reverse=True)
    return [(place.name, place) for place in newest]


def read_results(folder: Path, scale: str) -> Iterator[tuple[Path, Result | BadData]]:
    """Every result of one scale by file name; a damaged one is yielded as its error, so that tables can show it."""
    for path in sorted((folder / scale).glob("*-seed*.json")):
        try:
            yield path, read_result(path)
        except BadData as error:
            yield path, error
