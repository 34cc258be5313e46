"""Local copies of hub data sets. Their content is part of the identity of what is built; their path is not."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.words import listed
from stagealign.data.tables import ENDINGS, digest_of

MIRROR = "STAGEALIGN_DATA"
"""Environment variable: folder of local copies, `<folder>/<name of the data set>/<split>.parquet` (or .jsonl, ...)."""


def local_copy(data: str, split: str) -> Path | None:
    """The local file of one split of `owner/name@revision`; None if no mirror is set, so that the hub is used.

    A split must be one file. Raises BadData if the mirror is set and lacks the split: a misspelt folder never becomes a
    download.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    folder = Path(mirror).expanduser() / data.partition("@")[0].rpartition("/")[2]
    candidates = [path for ending in ENDINGS for path in (folder / f"{split}{ending}", folder / f"{split}{ending}.gz")]
    copies = [path for path in candidates if path.is_file()]
    if not copies:
        raise BadData(
            f"{MIRROR}={mirror}: no {folder / split}.parquet (or .jsonl, .json, .csv); put the split there, or unset "
            f"{MIRROR} to read {data} from the hub"
        )
    return copies[0]


def content_of(data: str, splits: Iterable[str] = ()) -> str | None:
    """Names and hashes of all local copies of a data set, as part of identity; None without a mirror.

    Raises BadData if the mirror is set and holds no file of the data set, or none of one of `splits`: a plan with a
    misspelt folder never counts on the hub.

    The hub's content is fixed by its pinned revision. A local file may hold anything, so its hash is needed.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    folder = Path(mirror).expanduser() / data.partition("@")[0].rpartition("/")[2]
    files = sorted(path for path in folder.glob("*") if path.name.lower().removesuffix(".gz").endswith(ENDINGS))
    if not files:
        raise BadData(_no_copy(mirror, folder, data))
    for split in splits:
        local_copy(data, split)
    return ",".join(f"{path.name}:{_digest(path, path.stat().st_mtime_ns)}" for path in files)


def _no_copy(mirror: str, folder: Path, data: str) -> str:
    """Error text for a mirror without the data set."""
    if not folder.is_dir():
        found = "no such folder" if not Path(mirror).expanduser().is_dir() else f"no folder {folder.name} in it"
    else:
        below = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        found = f"no data file in {folder}; found: {listed(below)}"
    return (
        f"{MIRROR}={mirror}: {found}; put each split there as {folder / 'SPLIT'}.parquet (or .jsonl, .json, .csv), or "
        f"unset {MIRROR} to read {data} from the hub"
    )


@lru_cache
def _digest(path: Path, changed: int) -> str:
    return digest_of(path)
