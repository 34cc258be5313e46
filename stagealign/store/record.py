"""An artifact's record: what it was built from."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagealign.base.errors import Damaged
from stagealign.base.identity import fingerprint
from stagealign.store.checksums import broken, damage

RECORD = "record.json"


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


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each leaf that differs between two identities, as `field was OLD, now NEW`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} was {old!r}, now {new!r}"


def remove(folder: Path) -> str:
    """The command that makes room for a folder to be built anew."""
    return f"`rm -r {shlex.quote(str(folder))}`"
