"""Numbered rows of a table, one at a time: a local file in any of the usual formats, or a hub data set.

An unreadable row raises BadData, naming file and row. No row is skipped silently; no file is loaded whole.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.identity import fingerprint
from stagealign.base.words import listed, short, why
from stagealign.data.formats import (
    EXAMPLES,
    Numbered,
    csv_rows,
    file_ending,
    json_object,
    json_rows,
    jsonl_rows,
    parquet_rows,
)
from stagealign.data.records import Drops

HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
NOT_DATA = re.compile(r"\.(arrow|bz2|gz|pkl|pickle|tar|tsv|txt|xlsx|xz|yaml|yml|zip|zst)$", re.IGNORECASE)
"""Endings that are never part of a hub name."""


@dataclass(frozen=True)
class Tally:
    """Rows left out, by reason, with the numbers of the first few."""

    unit: str
    """Unit of the numbers: `line` of a file, or `row` of a table from 1, without its header."""
    drops: Drops = field(default_factory=Drops)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, number: int) -> None:
        """Counts one row that is left out."""
        self.drops[reason] += 1
        first = self.examples.setdefault(reason, [])
        if len(first) < EXAMPLES:
            first.append(number)

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {count} ({self.unit}{'s' * (count > 1)} {', '.join(map(str, self.examples[reason]))}"
            f"{', ...' * (count > len(self.examples[reason]))})"
            for reason, count in self.drops.most_common()
        )


def local_file(source: str) -> Path | None:
    """The file that `source` names; None if it can only be a hub data set. Raises BadData if it can be neither."""
    if not source or "\0" in source:
        raise BadData(f"data {source!r}: no name; give a file or a hub data set `name[:config][@revision]`")
    path = Path(os.path.expanduser(source))
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise BadData(f"{short(source)}: not a file name ({why(error)}); check the path") from error
    if folder:
        raise BadData(f"{source}: a folder found; name a .jsonl, .json, .csv or .parquet file in it")
    known = file_ending(path) in ENDINGS
    if exists and known:
        return path
    if exists or (not known and NOT_DATA.search(path.name)):
        raise BadData(f"{source}: unknown ending {path.suffix!r}; known: .jsonl, .json, .csv (also with .gz), .parquet")
    if known:
        raise BadData(f"{source}: no such file; check the path")
    return None


def numbered_rows(source: str, columns: Iterable[str], split: str | None = None) -> tuple[str, Numbered]:
    """(`line` or `row`: the unit of the numbers; numbered rows) of a file or hub data set.

    Only the values of `columns` are guaranteed; other columns are None in formats that can leave them unread.
    """
    path = local_file(source)
    if path is None:
        return "row", _hub_rows(source, split)
    if split is not None:
        raise BadData(f"{source}: a file has no split {split!r}; splits are for hub data sets, leave it out")
    ending = file_ending(path)
    if ending == ".parquet":
        return "row", parquet_rows(path, source, frozenset(columns))
    reader = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows}[ending]
    return "line" if ending == ".jsonl" else "row", reader(path, source)


def table_at(source: str) -> Path:
    """The local file that `source` names. Raises BadData if there is none."""
    path = local_file(source)
    if path is None:
        raise BadData(f"{source}: no such file; `recorded:FILE` needs a .jsonl, .json, .csv or .parquet file")
    return path


def digest_of(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Hash of the names and contents of the files in a folder, such as a checkpoint; 16 hex digits."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return fingerprint({path.name: digest_of(path) for path in files})


def _hub_rows(source: str, split: str | None) -> Numbered:
    """Rows of a hub data set, streamed, without running its code: `trust_remote_code` is not set."""
    match = HUB.fullmatch(source)
    if match is None:
        raise BadData(f"{source!r}: neither a file nor a hub data set; the latter is `name[:config][@revision]`")
    from datasets import load_dataset

    number = 0
    try:
        data = load_dataset(match["name"], match["config"], revision=match["revision"], split=split, streaming=True)
        if isinstance(data, dict):
            if len(data) != 1:
                raise BadData(
                    f"{source}: splits {listed(data)} found; name one of them, such as --split {next(iter(data))}"
                )
            (data,) = data.values()
        for row in data:
            number += 1
            yield number, json_object(row, f"{source}, row {number}")
    except BadData:
        raise
    except Exception as error:  # the hub's client raises errors of many types; no code of this package runs inside
        at = f", after row {number}" if number else ""
        raise BadData(
            f"{source}{at}: no such file, and cannot be read from the hub ({why(error)}); check name, config, "
            "revision and split, the network, and your access to it"
        ) from error
