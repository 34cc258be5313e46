"""Data in several files: a folder, a pattern such as `data/*.parquet`, or a folder of `Dataset.save_to_disk`."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.words import listed, why
from stagealign.data.formats import Numbered, file_ending
from stagealign.data.json_text import several

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
SHARD_NUMBER = re.compile(r"(?:[-_.]?(?:shard|part)?[-_.]?\d+(?:[-_]of[-_]\d+)?)(?:[-_.][0-9a-f]{16})?$", re.IGNORECASE)
"""The part of a file's name that counts shards, as in `train-00000-of-00002-0f1e2d3c4b5a6978`."""

LONGEST_PATH = 4096


@dataclass(frozen=True)
class Shards:
    """Files with the rows of one table, in the order of their names; or a saved data set."""

    files: tuple[Path, ...]
    saved: Path | None = None
    """Folder of `Dataset.save_to_disk`."""


def shards_at(source: str, split: str | None) -> Shards | None:
    """The files of a folder or a pattern; None if `source` is neither. Raises BadData."""
    path = os.path.expanduser(source)
    if not path or "\0" in path or len(path) > LONGEST_PATH:
        return None
    if os.path.isdir(path):
        return _in_folder(source, Path(path), split)
    if not glob.has_magic(path) or os.path.exists(path):
        return None
    files = _data_files([Path(name) for name in sorted(glob.glob(path))])
    if not files:
        raise BadData(f"{source}: no data file has such a name; check the pattern")
    return Shards(_one_table(source, files, split))


def _in_folder(source: str, folder: Path, split: str | None) -> Shards:
    saved = folder / split if split and (folder / "dataset_dict.json").is_file() else folder
    if (saved / "state.json").is_file() and (saved / "dataset_info.json").is_file():
        if split and saved == folder:
            raise BadData(f"{source}: a data set without splits found; leave --split {split} out")
        return Shards((), saved)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json")) or ["none"]
        raise BadData(several(source, splits))
    for place in (folder, folder / "data"):
        files = _data_files(sorted(place.iterdir())) if place.is_dir() else []
        if files:
            return Shards(_one_table(source, files, split))
    raise BadData(
        f"{source}: a folder found without a .jsonl, .json, .csv or .parquet file; name a file, or its folder"
    )


def _data_files(paths: Sequence[Path]) -> list[Path]:
    """Data files among these; files of `save_pretrained` and `save_to_disk`, and hidden ones, are none."""
    others = ("config.json", "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
    return [
        path
        for path in paths
        if path.is_file() and file_ending(path) in ENDINGS and path.name not in others and path.name[0] not in "._"
    ]


def _one_table(source: str, files: Sequence[Path], split: str | None) -> tuple[Path, ...]:
    """The files of one table: all, or those of one split, which their names start with. Raises BadData."""
    by_name: dict[str, list[Path]] = {}
    for path in files:
        stem = path.name.removesuffix(".gz")[: -len(file_ending(path))]
        by_name.setdefault(SHARD_NUMBER.sub("", stem), []).append(path)
    if split is not None and split not in by_name:
        raise BadData(f"{source}: no files of split {split!r}; found: {listed(by_name)}")
    if split is None and len(by_name) != 1:
        raise BadData(several(source, list(by_name)))
    chosen = by_name[split] if split is not None else next(iter(by_name.values()))
    endings = sorted({file_ending(path) for path in chosen})
    if len(endings) > 1:
        raise BadData(
            f"{source}: files that end in {listed(endings)} found for one table; name a pattern such as *.parquet"
        )
    return tuple(chosen)


def saved_rows(folder: Path, source: str) -> Numbered:
    """Yields the rows of a folder of `Dataset.save_to_disk`, numbered from 1. Raises BadData."""
    from datasets import load_from_disk

    number = 0
    try:
        for row in load_from_disk(str(folder)):
            number += 1
            yield number, row
    except Exception as error:  # the library raises errors of many types; no code of this package runs inside
        at = f", after row {number}" if number else ""
        raise BadData(f"{source}{at}: not a sound saved data set ({why(error)}); save it again") from error
