"""Local copies of hub data sets; their content is identity, their place is not."""

import os
from functools import lru_cache
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.data.tables import ENDINGS, digest_of

MIRROR = "STAGEALIGN_DATA"
"""Variable that names a folder of local copies: `<folder>/<name of the data set>/<split>.parquet` (or .jsonl, ...)."""


def local_copy(data: str, split: str) -> Path | None:
    """The local file of one split of `owner/name@revision`; None if no mirror is set: the hub is asked then.

    A split in several parts is not looked for: join them into one file. Raises BadData if the mirror is set and the
    split is not in it, so that a misspelt folder does not become a download.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    folder = Path(mirror).expanduser() / data.partition("@")[0].rpartition("/")[2]
    found = [path for ending in ENDINGS for path in (folder / f"{split}{ending}", folder / f"{split}{ending}.gz")]
    here = [path for path in found if path.is_file()]
    if not here:
        raise BadData(
            f"{MIRROR}={mirror}: no {folder / split}.parquet (or .jsonl, .json, .csv); put the split there, or unset "
            f"{MIRROR} to read {data} from the hub"
        )
    return here[0]


def content_of(data: str) -> str | None:
    """Names and hashes of all local copies of a data set; None without a mirror, as the hub's pin then says it.

    Identity, for a local file may hold anything; its path is not.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    folder = Path(mirror).expanduser() / data.partition("@")[0].rpartition("/")[2]
    files = sorted(path for path in folder.glob("*") if path.name.lower().removesuffix(".gz").endswith(ENDINGS))
    return ",".join(f"{path.name}:{_digest(path, path.stat().st_mtime_ns)}" for path in files)


@lru_cache
def _digest(path: Path, changed: int) -> str:
    return digest_of(path)
