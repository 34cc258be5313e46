"""Builds each artifact once, at a readable path, with a record of what it was built from.

An artifact is a folder `<home>/<path>` that holds what its builder wrote and a `record.json`. It is built in
`<path>.<fingerprint>.part` and renamed when complete, so a folder without `.part` in its name is always complete.
"""

import glob
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from stagealign.base.errors import StoreDrift
from stagealign.base.identity import plain
from stagealign.base.kind import code_at
from stagealign.store.artifact import Artifact, Context, Facts, Work
from stagealign.store.checksums import contents, seal_of
from stagealign.store.facts import surroundings
from stagealign.store.home import default_home
from stagealign.store.locks import Held, held
from stagealign.store.record import RECORD, Record, check_files, differences, read_record, remove
from stagealign.store.room import naming_room

SCRATCH = "scratch"
"""Folder for a builder's intermediate files: removed at the end, and kept for the next build after a kill."""
Waiting = Callable[[str, str], None]
"""Called with path and holder of an artifact that another process builds."""


class Store:
    """A folder of artifacts."""

    def __init__(self, home: Path | None = None, context: Context = Context()):  # noqa: B008, it is frozen
        """`context` is passed to every builder."""
        self.home = home or default_home()
        self.context = context

    def folder(self, artifact: Artifact) -> Path:
        return self.home / artifact.path

    def record(self, artifact: Artifact) -> Record | None:
        """The artifact's record, or None if it is not built yet.

        Raises StoreDrift if the folder was built from another spec, naming each changed field; Damaged if the
        record, or the size of a file, changed since it was written.
        """
        folder = self.folder(artifact)
        record = read_record(folder)
        if record is None:
            return None
        self.fitting(record, artifact, str(folder), remove(folder))
        check_files(folder, record.get("files", {}), deep=False)
        return record

    def facts(self, artifact: Artifact) -> Facts:
        """Facts of a built artifact; empty if it is not built. Raises as `record` does."""
        record = self.record(artifact)
        return record["facts"] if record else {}

    @staticmethod
    def fitting(record: Record, artifact: Artifact, place: str, removal: str, other: str = "STAGEALIGN_HOME") -> Record:
        """The record, checked against the artifact's spec. Raises StoreDrift, naming each changed field."""
        if record["fingerprint"] != artifact.fingerprint:
            changes = "; ".join(differences(record["identity"], artifact.identity)) or "the inputs' own inputs"
            raise StoreDrift(
                f"{place}: built from another spec: {changes}. Nothing is reused silently; rebuild it after "
                f"{removal}, or keep both with another {other}"
            )
        return record

    @property
    def place(self) -> str:
        """Folder or URL that all machines of this store share."""
        return str(self.home)

    def shared(self, artifact: Artifact) -> bool:
        """Whether the artifact is built in the `place` that all machines share. Raises as `record` does."""
        return self.record(artifact) is not None

    def look(self, artifacts: Iterable[Artifact]) -> None:
        """Prefetches the records of these artifacts in one request. No-op for a local folder."""

    def forget(self, artifact: Artifact) -> None:
        """Drops the cached record of an artifact, as another machine may have built it. No-op for a local folder."""

    def bring(self, artifact: Artifact) -> Path:
        """Folder of a built artifact on this machine, fetched if only a bucket has it."""
        return self.folder(artifact)

    def changes(self, artifact: Artifact) -> list[str] | None:
        """Fields in which the artifact built at this path differs from the spec; None if nothing is built there.

        Raises Damaged, as `record` does.
        """
        folder = self.folder(artifact)
        record = read_record(folder)
        changes = self.differing(record, artifact)
        if record is not None and not changes:
            check_files(folder, record.get("files", {}), deep=False)
        return changes

    def standing(self, artifact: Artifact) -> tuple[list[str] | None, bool]:
        """(`changes`, whether the artifact is built in the `place` that all machines share). Raises Damaged."""
        changes = self.changes(artifact)
        return changes, changes == []

    @staticmethod
    def differing(record: Record | None, artifact: Artifact) -> list[str] | None:
        """Fields in which a record differs from the artifact's spec; None without a record."""
        if record is None or record["fingerprint"] == artifact.fingerprint:
            return None if record is None else []
        return list(differences(record["identity"], artifact.identity)) or ["the inputs' own inputs"]

    def file(self, artifact: Artifact, name: str) -> Path:
        """Path of a file of a built artifact, its content checked. Raises Damaged."""
        folder = self.folder(artifact)
        record = self.record(artifact)
        written = record.get("files", {}) if record else {}
        check_files(folder, {name: written[name]} if name in written else {}, deep=True)
        return folder / name

    def build(self, artifact: Artifact, waiting: Waiting | None = None) -> Record:
        """Record of the artifact, which is built if it is missing; its inputs must be built.

        One process builds at a time; others wait and reuse its artifact. `waiting` is called with path and holder.
        Raises Damaged if an input changed since it was written.
        """
        return self.obtain(artifact, waiting)[0]

    def obtain(self, artifact: Artifact, waiting: Waiting | None = None) -> tuple[Record, bool]:
        """(record, whether this call built it); otherwise the same as `build`."""
        ready = self.record(artifact)
        if ready is not None:
            return ready, False
        folder = self.folder(artifact)
        with naming_room(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with held(folder, lambda who: waiting(artifact.path, who) if waiting else None) as hold:
                ready = self.record(artifact)
                if ready is not None:
                    return ready, False
                record = self._make(artifact, folder, hold)
        return (record, True) if record is not None else self.obtain(artifact, waiting)

    def _make(self, artifact: Artifact, folder: Path, hold: Held) -> Record | None:
        """Record of the artifact, built now; None if another machine took over, so that this build is discarded."""
        for parent in artifact.inputs.values():
            known = self.record(parent)
            check_files(self.folder(parent), known.get("files", {}) if known else {}, deep=True)
        own = f".{secrets.token_hex(4)}" * hold.replaced  # a replaced holder may still write to its own
        part = folder.with_name(f"{folder.name}.{artifact.fingerprint}{own}.part")
        _clear(part)
        inputs = {name: self.folder(parent) for name, parent in artifact.inputs.items()}
        build = code_at(artifact.kind.function)
        started = time.monotonic()
        try:
            facts = build(Work(plain(artifact.params), inputs, part, self.home, self.context)) or {}
            _remove_scratch(part)
            record: Record = {
                "fingerprint": artifact.fingerprint,
                "identity": artifact.identity,
                "inputs": {name: parent.path for name, parent in sorted(artifact.inputs.items())},
                "facts": {**facts, **surroundings(), "seconds": round(time.monotonic() - started, 2)},
                "files": contents(part, without=RECORD),
            }
            record["seal"] = seal_of(record)
            (part / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        except Exception:
            if hold.mine:
                raise
        if not hold.mine:
            shutil.rmtree(part, ignore_errors=True)
            return None
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        for other in folder.parent.glob(f"{glob.escape(folder.name)}.{artifact.fingerprint}*.part"):
            shutil.rmtree(other, ignore_errors=True)  # left by replaced holders
        return record


def _clear(part: Path) -> None:
    """Empties `part`, except for the builder's scratch, from which it may resume a killed build."""
    part.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.name != SCRATCH:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_scratch(part: Path) -> None:
    """Removes the scratch of a finished build; renamed first, so that no build resumes from a half-removed one."""
    scratch = part / SCRATCH
    if scratch.exists():
        shutil.rmtree(scratch.rename(part / f"{SCRATCH}.over"))
