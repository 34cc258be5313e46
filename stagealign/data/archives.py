"""Extraction of the wanted files of a wheel or sdist: plain files only, inside one folder, up to a size."""

import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from stagealign.base.errors import BadAsset
from stagealign.data.asset import MANIFEST, Asset
from stagealign.store.checksums import WrittenFile

LARGEST_FILE = 512 * 2**20
"""Bytes; a member that unpacks to more is refused."""
LARGEST_ASSET = 2 * 2**30
"""Bytes of all members; more is refused."""


@dataclass(frozen=True)
class _Member:
    """One entry of an archive."""

    name: str
    plain: bool
    """True for a regular file; False for a link or device."""
    open: Callable[[], IO[bytes] | None]


def unpack(asset: Asset, archive: Path, out: Path) -> Iterator[tuple[str, WrittenFile]]:
    """Unpacks the wanted members into `out`; yields path, sha256 and size in bytes of each.

    Raises BadAsset for a member that is a link, would be written outside `out` or is too large, and for a pattern
    that matches no file.
    """
    missing, total = set(asset.members), 0
    with open(archive, "rb") as file:
        for pattern, member in _wanted(file, asset.filename, asset.members):
            missing.discard(pattern)
            path = PurePosixPath(member.name)
            if not member.plain:
                raise BadAsset(f"{archive}: member {member.name!r} is a link or device; only plain files are unpacked")
            if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                raise BadAsset(f"{archive}: member {member.name!r} points outside its folder; it is not unpacked")
            target = out / path
            if target.exists() or path == PurePosixPath(MANIFEST):
                raise BadAsset(
                    f"{archive}: member {member.name!r} comes twice or is named {MANIFEST}; it is not unpacked"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            content = member.open()
            assert content is not None
            with content, open(target, "xb") as copy:
                entry = _copy(content, copy, f"{archive}: member {member.name!r}")
            total += entry["bytes"]
            if total > LARGEST_ASSET:
                raise BadAsset(f"{archive}: unpacks to more than {LARGEST_ASSET:,} bytes; it is not unpacked")
            yield str(path), entry
    if missing:
        raise BadAsset(f"{archive}: nothing in it matches {', '.join(sorted(missing))}; correct assets.ASSETS")


def _wanted(file: IO[bytes], name: str, patterns: tuple[str, ...]) -> Iterator[tuple[str, _Member]]:
    """Yields (pattern, member) for each wanted member, including members of archives inside this one."""
    for member in _members(file, name):
        direct = [pattern for pattern in patterns if "!" not in pattern and fnmatchcase(member.name, pattern)]
        if direct:
            yield direct[0], member
        nested = {
            inner: pattern
            for pattern in patterns
            for outer, mark, inner in [pattern.partition("!")]
            if mark and fnmatchcase(member.name, outer)
        }
        if nested:
            content = member.open() if member.plain else None
            if content is None:
                raise BadAsset(f"{name}: member {member.name!r} is a link or device, not an archive")
            with content:
                data = content.read(LARGEST_FILE + 1)
            if len(data) > LARGEST_FILE:
                raise BadAsset(f"{name}: member {member.name!r} unpacks to more than {LARGEST_FILE:,} bytes")
            for inner, nested_member in _wanted(io.BytesIO(data), member.name, tuple(nested)):
                yield nested[inner], nested_member


def _members(file: IO[bytes], name: str) -> Iterator[_Member]:
    """Yields the members of a zip or tar archive in its order, without folders."""
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    yield _Member(info.filename, kind in (0, stat.S_IFREG), partial(archive.open, info))
    else:
        with tarfile.open(fileobj=file) as tar:
            for entry in tar:
                if not entry.isdir():
                    yield _Member(entry.name, entry.isreg(), partial(tar.extractfile, entry))


def _copy(content: IO[bytes], copy: IO[bytes], name: str) -> WrittenFile:
    """Copies a member block by block. Raises BadAsset once it is larger than LARGEST_FILE."""
    digest = hashlib.sha256()
    size = 0
    while chunk := content.read(2**20):
        size += len(chunk)
        if size > LARGEST_FILE:
            raise BadAsset(f"{name} unpacks to more than {LARGEST_FILE:,} bytes; it is not unpacked")
        digest.update(chunk)
        copy.write(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
