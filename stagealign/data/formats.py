"""Readers of JSON, CSV and parquet files: numbered rows, one at a time."""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, why

DataRow: TypeAlias = Mapping[str, Any]
"""Values by column, as the format has them."""
Numbered: TypeAlias = Iterator[tuple[int, DataRow]]
LONGEST = 1 << 26
"""Most bytes of a row; a longer row means another format, or would exhaust the memory."""
CHUNK = 1 << 18
MISFIT = object()
"""Value of every cell of a CSV row whose number of cells differs from the header's."""
EXAMPLES = 3
"""Number of rows that a message lists."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet recognizes a formula."""


def file_ending(path: Path) -> str:
    """Ending of the file name in lower case, which names the format; `.gz` after a text format is removed."""
    name = path.name.lower()
    return Path(name).suffix if name.endswith(".parquet") else Path(name.removesuffix(".gz")).suffix


@contextmanager
def opened_bytes(path: Path, source: str) -> Iterator[IO[bytes]]:
    """The open file in bytes, decompressed; errors while it is read become BadData."""
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except EOFError as error:
        raise BadData(f"{source}: the gzip file ends early; copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{source}: not a sound gzip file ({error}); copy it again, or drop .gz from its name") from error
    except OSError as error:
        raise BadData(f"{source}: cannot be read ({error.strerror or error}); check the file") from error


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their line ends, without a byte order mark."""
    with opened_bytes(path, source) as file:
        number = 0
        while raw := file.readline(LONGEST):
            number += 1
            if len(raw) == LONGEST and not raw.endswith(b"\n"):
                raise BadData(f"{source}, line {number}: longer than {LONGEST >> 20} MiB; one row a line is expected")
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                raise BadData(f"{source}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def jsonl_rows(path: Path, source: str) -> Numbered:
    """Yields the objects of a file with one object per line, numbered by line; skips empty lines. Raises BadData."""
    for number, line in _lines(path, source):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where}: not JSON ({why(error)}); one object a line is expected") from error
        yield number, json_object(row, where)


def csv_rows(path: Path, source: str) -> Numbered:
    """Yields rows of a CSV file with a header, numbered from 1. Raises BadData.

    A cell is text, or a conversation in JSON. A row with more or fewer cells than the header has MISFIT
    in every column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # the default refuses texts above 128 KiB
    reader = csv.reader((line for _, line in _lines(path, source)), strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                repeated = [name for name in header if header.count(name) > 1]
                if repeated:
                    raise BadData(f"{source}: column {repeated[0]!r} found twice; give each column its own name")
                continue
            number += 1
            if len(cells) != len(header):
                yield number, dict.fromkeys(header, MISFIT)
                continue
            yield number, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise BadData(
            f"{source}, line {reader.line_num}: not CSV ({error}); put text in quotes and double the quotes in it"
        ) from error


def _cell(text: str) -> Any:
    """Value of a CSV cell: a conversation if the cell holds one in JSON, else its text."""
    if not text.startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    keys = [set(item) if isinstance(item, dict) else set() for item in value] if isinstance(value, list) else []
    return value if keys and all({"role", "content"} <= key or {"from", "value"} <= key for key in keys) else text


def parquet_rows(path: Path, source: str, wanted: frozenset[str] | None) -> Numbered:
    """Yields rows of a parquet file, numbered from 1. Columns not in `wanted` are unread and None. Raises BadData.

    `wanted`: None for all columns.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if wanted is None or name in wanted]
            others = dict.fromkeys(name for name in names if name not in columns)  # their names count as present
            for batch in file.iter_batches(batch_size=64, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row | others
    except UnicodeDecodeError as error:
        raise BadData(f"{source}, after row {number}: not UTF-8 ({error.reason}); write the file again") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        at = f", after row {number}" if number else ""
        raise BadData(f"{source}{at}: not a sound parquet file ({why(error)}); write or copy it again") from error


def json_object(row: Any, where: str) -> DataRow:
    """The row itself. Raises BadData if it is not an object; the message starts with `where`."""
    if not isinstance(row, dict):
        raise BadData(f"{where}: {kind_of(row)} found; an object with a value for each column is expected")
    return row


def no_formula(value: Any) -> Any:
    """Puts an apostrophe before a text that a spreadsheet would take for a formula; returns other values unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def from_spreadsheet(text: str) -> str:
    """Removes the apostrophe that `no_formula` puts before a formula."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text
