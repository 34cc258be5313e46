"""Records of artifacts: the spec and inputs of a build, its facts and its files."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from stagealign.base.errors import Damaged
from stagealign.base.identity import fingerprint
from stagealign.store.artifact import ArtifactIdentity, Facts
from stagealign.store.checksums import WrittenFile, broken, damage

RECORD = "record.json"


class Record(TypedDict):
    """The spec and the inputs that an artifact was built from, its facts and its files."""

    fingerprint: str
    identity: ArtifactIdentity
    inputs: Mapping[str, str]
    """Path of each input, by its name."""
    facts: Facts
    files: NotRequired[Mapping[str, WrittenFile]]
    """By path in the artifact's folder; absent from records of old versions."""
    seal: NotRequired[str]
    """Checksum of all other keys; present exactly if `files` is."""


def read_record(folder: Path) -> Record | None:
    """Record in a folder, of any spec; None if there is none. Raises Damaged."""
    path = folder / RECORD
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    return parsed_record(text, str(path), f"remove the folder to rebuild it: {remove(folder)}")


def parsed_record(text: bytes, path: str, again: str) -> Record:
    """Record parsed from the text of the file `path`. Raises Damaged; `again` says how to rebuild the artifact."""
    try:
        read: Any = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{path}: damaged record ({error}); {again}") from error
    if not isinstance(read, dict) or not {"fingerprint", "identity"} <= read.keys():
        raise Damaged(f"{path}: not a record; {again}")
    record = cast(Record, read)
    # The seal covers the whole record. Old records have no seal; their fingerprint still covers the identity.
    if broken(record) or (("files" in record) != ("seal" in record)) or not _own(record):
        raise Damaged(f"{path}: damaged record (its content changed since it was written); {again}")
    return record


def _own(record: Record) -> bool:
    try:
        return bool(record["fingerprint"] == fingerprint(record["identity"]))
    except TypeError:  # a value that no identity can hold
        return False


def check_files(folder: Path, files: Mapping[str, WrittenFile], deep: bool) -> None:
    """Raises Damaged if a file's size, or with `deep` its content, differs from its record."""
    fault = damage(folder, files, deep)
    if fault:
        raise Damaged(f"{fault}; remove the folder to rebuild it: {remove(folder)}")


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each leaf that differs between two identities, as `field was OLD, now NEW`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} was {old!r}, now {new!r}"


def remove(folder: Path) -> str:
    """The command that removes a folder, so that it is rebuilt."""
    return f"`rm -r {shlex.quote(str(folder))}`"
