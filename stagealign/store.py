"""Builds each artifact once, at a readable path, with a record of what it was built from.

An artifact is a folder `<home>/<path>` that holds what its builder wrote and a `record.json`. It is built in
`<path>.<fingerprint>.part` and renamed when whole, so a folder without `.part` in its name is always complete.
"""

import errno
import glob
import importlib
import json
import os
import platform
import resource
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from stagealign.atomic import NO_ROOM
from stagealign.devices import Devices
from stagealign.errors import Damaged, StagealignError, StoreDrift
from stagealign.locks import Held, held
from stagealign.seals import broken, contents, damage, sealed
from stagealign.spec import fingerprint, plain

RECORD = "record.json"
SCRATCH = "scratch"
"""Folder in a builder's output that is not part of it; all that the next build finds of a killed one."""
SMALLEST = 1 << 14
"""Free bytes below which a disk is full."""
RECORDED_PACKAGES = ("stagealign", "torch", "transformers", "trl", "accelerate", "scikit-learn", "spacy", "numpy")


@dataclass(frozen=True)
class Builder:
    """What makes an artifact: its name is identity for ever, the place of its code is not."""

    name: str
    """Part of every fingerprint; never changed, wherever the code moves."""
    version: int = 1
    """Raised by hand when the output changes meaning."""
    place: str = field(default="", compare=False)
    """`module:function`, called with a `Work`, returns facts; imported only when something is built.
    Empty: the name is the place."""

    @property
    def function(self) -> str:
        """`module:function` of the code."""
        return self.place or self.name


@dataclass(frozen=True)
class Artifact:
    """A unit of cached work: what to build, from what, and where it will stand."""

    path: str
    builder: Builder
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, "Artifact"] = field(default_factory=dict)
    seconds: float = 1.0
    """Expected seconds on one core of a laptop; execution, not identity."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the content, in clear text."""
        return {
            "builder": self.builder.name,
            "version": self.builder.version,
            "params": plain(self.params),
            "inputs": {name: artifact.fingerprint for name, artifact in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    def lineage(self, found: dict[str, "Artifact"] | None = None) -> dict[str, "Artifact"]:
        """By path, all that this artifact is made from and then itself, each once, parents first; added to `found`."""
        found = {} if found is None else found
        if self.path not in found:
            for parent in self.inputs.values():
                parent.lineage(found)
            found[self.path] = self
        return found


@dataclass(frozen=True)
class Work:
    """What a builder is given."""

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    home: Path
    devices: Devices = field(default_factory=Devices)
    """How training is spread; execution, so no builder's output may depend on it."""
    spend: float | None = None
    """USD that a judge may cost while this artifact is built; execution."""


def default_home() -> Path:
    """`$STAGEALIGN_HOME`, or the user's cache folder; outside every repository."""
    return Path(os.environ.get("STAGEALIGN_HOME") or Path.home() / ".cache" / "stagealign").expanduser()


Waiting = Callable[[str, str], None]
"""Is told path and holder of what is waited for."""


class Store:
    """A folder of artifacts."""

    def __init__(
        self,
        home: Path | None = None,
        devices: Devices = Devices(),  # noqa: B008, it is frozen
        spend: float | None = None,
    ):
        """`devices` and `spend` are what builders are given; see `Work`."""
        self.home = home or default_home()
        self.devices = devices
        self.spend = spend

    def folder(self, artifact: Artifact) -> Path:
        return self.home / artifact.path

    def record(self, artifact: Artifact) -> dict[str, Any] | None:
        """The artifact's record, or None where it is not built yet.

        Raises StoreDrift where the folder was built from another spec, naming each changed field; Damaged where the
        record is not as it was written, or a file has another size than it was written with.
        """
        folder = self.folder(artifact)
        record = read_record(folder)
        if record is None:
            return None
        self.fitting(record, artifact, str(folder), remove(folder))
        check_files(folder, record, deep=False)
        return record

    @staticmethod
    def fitting(
        record: dict[str, Any], artifact: Artifact, place: str, removal: str, other: str = "STAGEALIGN_HOME"
    ) -> dict[str, Any]:
        """The record, where it is of the artifact's spec. Raises StoreDrift, naming each changed field."""
        if record["fingerprint"] != artifact.fingerprint:
            changes = "; ".join(differences(record["identity"], artifact.identity)) or "the inputs' own inputs"
            raise StoreDrift(
                f"{place}: built from another spec: {changes}. Nothing is reused in silence; build it anew after "
                f"{removal}, or keep both with another {other}"
            )
        return record

    @property
    def place(self) -> str:
        """Where all that build for it must meet."""
        return str(self.home)

    def shared(self, artifact: Artifact) -> bool:
        """Whether it is built, where all that build for this store can have it. Raises as `record` does."""
        return self.record(artifact) is not None

    def look(self, artifacts: Iterable[Artifact]) -> None:
        """Says that these will be asked for, so that they can be looked up at once; a folder needs none of it."""

    def forget(self, artifact: Artifact) -> None:
        """Says that somebody else may have built it meanwhile; a folder is looked at each time."""

    def bring(self, artifact: Artifact) -> Path:
        """Folder of a built artifact on this machine."""
        return self.folder(artifact)

    def changes(self, artifact: Artifact) -> list[str] | None:
        """How what stands at the artifact's path differs from its spec, field by field; None where nothing is there.

        Raises Damaged, as `record` does.
        """
        folder = self.folder(artifact)
        record = read_record(folder)
        found = self.differing(record, artifact)
        if record is not None and not found:
            check_files(folder, record, deep=False)
        return found

    @staticmethod
    def differing(record: dict[str, Any] | None, artifact: Artifact) -> list[str] | None:
        """How a record differs from the artifact's spec, field by field; None without a record."""
        if record is None or record["fingerprint"] == artifact.fingerprint:
            return None if record is None else []
        return list(differences(record["identity"], artifact.identity)) or ["the inputs' own inputs"]

    def file(self, artifact: Artifact, name: str) -> Path:
        """Path of one of a built artifact's files, whose content is as it was written. Raises Damaged."""
        folder = self.folder(artifact)
        record = self.record(artifact)
        written = (record or {}).get("files", {})
        only = {"files": {name: written[name]}} if name in written else {}
        check_files(folder, only, deep=True)
        return folder / name

    def build(self, artifact: Artifact, waiting: Waiting | None = None) -> dict[str, Any]:
        """The artifact's record, building it where it is missing; its inputs must be ready.

        One builder at a time: others wait and then reuse. `waiting` is told path and holder. Raises Damaged where an
        input is not as it was written.
        """
        return self.obtain(artifact, waiting)[0]

    def obtain(self, artifact: Artifact, waiting: Waiting | None = None) -> tuple[dict[str, Any], bool]:
        """As `build`, and whether it was this call that built it."""
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
                made = self._make(artifact, folder, hold)
        return (made, True) if made is not None else self.obtain(artifact, waiting)

    def _make(self, artifact: Artifact, folder: Path, hold: Held) -> dict[str, Any] | None:
        """The record of what is built now; None where another machine took over meanwhile, and nothing of it counts."""
        for parent in artifact.inputs.values():
            check_files(self.folder(parent), self.record(parent) or {}, deep=True)
        own = f".{secrets.token_hex(4)}" * hold.replaced  # the replaced one may be alive, and write where it began
        part = folder.with_name(f"{folder.name}.{artifact.fingerprint}{own}.part")
        _clear(part)
        inputs = {name: self.folder(parent) for name, parent in artifact.inputs.items()}
        module, _, function = artifact.builder.function.partition(":")
        build = getattr(importlib.import_module(module), function)
        started = time.monotonic()
        try:
            facts = build(Work(plain(artifact.params), inputs, part, self.home, self.devices, self.spend)) or {}
            _remove_scratch(part)
            record = {
                "fingerprint": artifact.fingerprint,
                "identity": artifact.identity,
                "inputs": {name: parent.path for name, parent in sorted(artifact.inputs.items())},
                "facts": {**facts, **surroundings(), "seconds": round(time.monotonic() - started, 2)},
                "files": contents(part, without=RECORD),
            }
            record = sealed(record)
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
            shutil.rmtree(other, ignore_errors=True)  # of holders that were replaced
        return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, of whatever spec; None where there is none. Raises Damaged."""
    path = folder / RECORD
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    return parsed_record(text, str(path), f"remove the folder to build it anew: {remove(folder)}")


def parsed_record(text: bytes, path: str, again: str) -> dict[str, Any]:
    """A record from its text, which stands at `path`; `again` says how to build anew. Raises Damaged."""
    try:
        record: Any = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{path}: damaged record ({error}); {again}") from error
    if not isinstance(record, dict) or not {"fingerprint", "identity"} <= record.keys():
        raise Damaged(f"{path}: not a record; {again}")
    # The seal is over all of it; the fingerprint holds for the identity of records from before there were seals.
    if broken(record) or (("files" in record) != ("seal" in record)) or not _own(record):
        raise Damaged(f"{path}: damaged record (its content changed since it was written); {again}")
    return record


def _own(record: Mapping[str, Any]) -> bool:
    try:
        return bool(record["fingerprint"] == fingerprint(record["identity"]))
    except TypeError:  # a value that no identity has
        return False


def check_files(folder: Path, record: Mapping[str, Any], deep: bool) -> None:
    """Raises Damaged where a file is not as the record says: by its size or, `deep`, by its content.

    A record from before files were listed says nothing, so nothing is checked.
    """
    found = damage(folder, record.get("files", {}), deep)
    if found:
        raise Damaged(f"{found}; remove the folder to build it anew: {remove(folder)}")


@contextmanager
def naming_room(folder: Path) -> Iterator[None]:
    """Tells what to do where a full, read-only or foreign disk is in the way."""
    try:
        yield
    except StagealignError:
        raise
    except Exception as error:
        no_room = room_error(folder, error)
        if no_room is None:
            raise
        raise no_room from error


def room_error(folder: Path, error: Exception) -> StagealignError | None:
    """What to tell a user where a full, read-only or foreign disk is why `error` came; None where it is not.

    Libraries raise it as no OSError, and torch without a word of it: then the free space tells.
    """
    full = os.strerror(errno.ENOSPC)
    known = isinstance(error, OSError) and error.errno in NO_ROOM
    if not known and full not in str(error) and not _is_full(folder):
        return None
    where, what = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or full
    return StagealignError(
        f"{where}: {what}; free some space or point STAGEALIGN_HOME to another folder, then run the same command "
        "again: all that is built stays"
    )


def _is_full(folder: Path) -> bool:
    """Whether the disk has no room left for even a small file."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return shutil.disk_usage(there).free < SMALLEST


def _clear(part: Path) -> None:
    """An empty `part`, but for the builder's own scratch, which a killed build may have left to go on from."""
    part.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.name != SCRATCH:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_scratch(part: Path) -> None:
    """Takes the scratch out of what is finished; renamed first, so that a kill leaves no half of it to go on from."""
    scratch = part / SCRATCH
    if scratch.exists():
        shutil.rmtree(scratch.rename(part / f"{SCRATCH}.over"))


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each leaf that differs between two identities, as `field was OLD, now NEW`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} was {old!r}, now {new!r}"


def surroundings() -> dict[str, Any]:
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
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def hardware() -> str:
    """Processor and core count, and the GPU where torch is loaded and sees one."""
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
def code_version() -> dict[str, Any]:
    """Commit of this checkout and whether it has uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent

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


def remove(folder: Path) -> str:
    """The command that makes room for a folder to be built anew."""
    return f"`rm -r {shlex.quote(str(folder))}`"
