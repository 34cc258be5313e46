"""Numbered rows of a table, one at a time: a local file in any of the usual formats, or a hub data set.

An unreadable row raises BadData, naming file and row. No row is skipped silently; no file is loaded whole.
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.identity import fingerprint
from stagealign.base.words import listed, short, why
from stagealign.data.formats import (
    EXAMPLES,
    DataRow,
    Numbered,
    csv_rows,
    file_ending,
    json_object,
    jsonl_rows,
    parquet_rows,
)
from stagealign.data.json_text import json_rows, no_split, unwrapped
from stagealign.data.records import Drops
from stagealign.data.shards import Shards, saved_rows, shards_at

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
    if split is not None and file_ending(path) not in (".json", ".jsonl"):
        raise BadData(no_split(source, split))
    return _unit(path), _file_rows(path, source, frozenset(columns), split)


class DataTable:
    """Rows of a file, of several files or of a hub data set, the first ones read ahead."""

    def __init__(self, unit: str, ahead: Numbered, rest: Callable[[frozenset[str]], Numbered] | None, count: int):
        self.unit = unit
        """Unit of the numbers: `line` or `row`."""
        self._ahead = deque(islice(ahead, count))
        self._then = ahead
        self._again = rest

    def first(self) -> list[DataRow]:
        """The first rows, with the values of all columns."""
        return [row for _, row in self._ahead]

    def rows(self, columns: frozenset[str]) -> Numbered:
        """Yields all rows, numbered; only the values of these columns are guaranteed. To be called once, and last."""
        if self._again:
            self._ahead.clear()
            yield from self._again(columns)
            return
        while self._ahead:
            yield self._ahead.popleft()
        yield from self._then


def opened_table(source: str, count: int, split: str | None = None) -> DataTable:
    """The rows of `source`, of which the first `count` are read. Raises BadData.

    `source`: a file, a folder or a pattern of files, a folder of `Dataset.save_to_disk`, or a hub data set.
    """
    shards = shards_at(source, split)
    if shards is None:
        path = local_file(source)
        if path is not None and file_ending(path) == ".parquet":
            shards = Shards((path,))
            if split is not None:
                raise BadData(no_split(source, split))
    if shards is not None and not shards.saved:
        unit = _unit(shards.files[0]) if len(shards.files) == 1 else "row"
        ahead = _shard_rows(shards, source, None)
        return DataTable(unit, ahead, partial(_shard_rows, shards, source), count)
    if shards is not None and shards.saved:
        return DataTable("row", saved_rows(shards.saved, source), None, count)
    unit, rows = numbered_rows(source, (), split)
    return DataTable(unit, rows, None, count)


def _unit(path: Path) -> str:
    return "line" if file_ending(path) == ".jsonl" else "row"


def _file_rows(path: Path, source: str, columns: frozenset[str] | None, split: str | None = None) -> Numbered:
    """Rows of one file; of a parquet file only the values of `columns`, or all for None."""
    ending = file_ending(path)
    if ending == ".parquet":
        return parquet_rows(path, source, columns)
    if ending == ".json":
        return json_rows(path, source, split)
    return _jsonl_rows(path, source, split) if ending == ".jsonl" else csv_rows(path, source)


def _jsonl_rows(path: Path, source: str, split: str | None) -> Numbered:
    """Rows of a JSON-lines file; the rows that its only line holds, if it is one of the wrappers of `json_rows`."""
    lines = jsonl_rows(path, source)
    first = list(islice(lines, 2))
    rows = unwrapped(first[0][1], source, split) if len(first) == 1 else None
    if rows is None and split is not None:
        raise BadData(no_split(source, split))
    return chain(first, lines) if rows is None else ((number, row) for number, row in enumerate(rows, 1))


def _shard_rows(shards: Shards, source: str, columns: frozenset[str] | None) -> Numbered:
    """Rows of several files, numbered through; those of a single file keep its numbers."""
    if len(shards.files) == 1:
        yield from _file_rows(shards.files[0], source, columns)
        return
    number = 0
    for path in shards.files:
        for _, row in _file_rows(path, str(path), columns):
            number += 1
            yield number, row


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
