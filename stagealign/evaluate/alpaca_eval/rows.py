"""Input of AlpacaEval: each prompt with the completions of baseline and model, joined by prompt hash.

Files have AlpacaEval's own columns `instruction`, `output` and `generator`; `prompt` and `completion` are accepted.
The baseline's file defines the prompts, and all of them stay in the denominator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import DataRow
from stagealign.data.records import prompt_hash
from stagealign.data.tables import digest_of, local_file, numbered_rows
from stagealign.evaluate.alpaca_eval.official_prompts import official_index

PROMPT, COMPLETION = ("instruction", "prompt"), ("output", "completion")
NAMED = 3
"""Number of prompts that a message lists."""


@dataclass(frozen=True)
class BattleItem:
    """One prompt with the two completions."""

    index: int
    """The baseline's `prompt_index`; without one AlpacaEval's own number, or for other prompts the row's place."""
    prompt: str
    baseline: str
    model: str | None
    """None if there is no completion of the model."""

    @property
    def hash(self) -> str:
        return prompt_hash(self.prompt)


@dataclass(frozen=True)
class Battle:
    """All prompts in the baseline's order, and the names of both generators."""

    items: tuple[BattleItem, ...]
    generator: str
    baseline: str
    files: Mapping[str, Mapping[str, str]]
    """Name and sha256 (first 16 hex digits) of both files."""
    placed: bool = False
    """True if an `index` is only the row's place in the baseline's file, by which nothing may be joined."""


@dataclass(frozen=True)
class _Completion:
    """One row of a file of completions."""

    number: int
    prompt: str
    completion: str | None
    """None for a null, as some tools write for an empty answer."""
    generator: str
    index: int | None


def read(outputs: str, baseline: str, generator: str | None = None) -> Battle:
    """The prompts of `baseline` with the completions of both sides.

    `generator` selects one of several in OUTPUTS. Raises BadData, naming rows and prompts, for unreadable files, for
    repeated prompts, and for completions of prompts that the baseline lacks.
    """
    theirs, ours = _completions(baseline), _completions(outputs, generator)
    others = [row for key, row in ours.items() if key not in theirs]
    if others:
        raise BadData(
            f"{outputs}: {quoted(others)} not in the baseline {baseline}; give the baseline that has these prompts"
        )
    empty = [row for row in theirs.values() if row.completion is None]
    if empty:
        raise BadData(f"{baseline}: the completion of {quoted(empty)} is null; text is expected of the baseline")
    official = [official_index(key) for key in theirs]
    named = [row.index for row in theirs.values()]
    indices, placed = _numbers(named, official)
    items = [
        BattleItem(index, row.prompt, row.completion or "", ours[key].completion if key in ours else None)
        for index, (key, row) in zip(indices, theirs.items(), strict=True)
    ]
    if len(set(indices)) != len(indices):
        twice = sorted({index for index in indices if indices.count(index) > 1})
        raise BadData(f"{baseline}: prompt_index {listed(twice)} found more than once; number each prompt once")
    files = {"outputs": file_facts(outputs), "baseline": file_facts(baseline)}
    names = [next(iter(rows.values())).generator for rows in (ours, theirs)]
    return Battle(tuple(items), names[0], names[1], files, placed)


def _numbers(named: Sequence[int | None], official: Sequence[int | None]) -> tuple[list[int], bool]:
    """(number of each prompt, whether some are only places): those of the file, else AlpacaEval's own, else places."""
    for numbers in (named, official):
        known = [number for number in numbers if number is not None]
        if len(known) == len(numbers):
            return known, False
    return [place if number is None else number for place, number in enumerate(named)], True


def file_facts(source: str) -> dict[str, str]:
    """Name and hash of a file, for the record."""
    path = Path(source).expanduser()
    return {"name": path.name, "sha256": digest_of(path)}


def rows_of(source: str, columns: Iterable[str]) -> list[tuple[int, DataRow]]:
    """Numbered rows of a file, with those of `columns` that it has. Raises BadData, also for an empty file."""
    if local_file(source) is None:
        raise BadData(f"{source}: no such file; a .json, .jsonl, .csv or .parquet file is expected")
    _, numbered = numbered_rows(source, columns)
    rows = list(numbered)
    if not rows:
        raise BadData(f"{source}: no rows; one a prompt is expected")
    return rows


def column(row: DataRow, names: Iterable[str]) -> str | None:
    """The first of `names` that is a column of the row; None if none is."""
    return next((name for name in names if name in row), None)


def quoted(rows: Iterable[Any]) -> str:
    """Error text with the number of prompts and the first few of them; `rows` have `number` and `prompt`."""
    rows = list(rows)
    some = ", ".join(f"{short(row.prompt)} (row {row.number})" for row in rows[:NAMED])
    return f"{len(rows)} prompt{'s' * (len(rows) > 1)} ({some}{', ...' * (len(rows) > NAMED)})"


def _completions(source: str, generator: str | None = None) -> dict[str, _Completion]:
    """Completions of one generator by prompt hash. Raises BadData."""
    columns = (*PROMPT, *COMPLETION, "generator", "prompt_index")
    rows = [_parsed(source, number, row) for number, row in rows_of(source, columns)]
    names = list(dict.fromkeys(row.generator for row in rows))
    if generator is not None:
        rows = [row for row in rows if row.generator == generator]
        if not rows:
            raise BadData(f"{source}: generator {generator!r} not found; it has {listed(names)}")
    elif len(names) > 1:
        raise BadData(f"{source}: completions of {len(names)} generators found ({listed(names)}); name one or split it")
    by_prompt: dict[str, _Completion] = {}
    twice = []
    for row in rows:
        key = prompt_hash(row.prompt)
        if key in by_prompt:
            twice.append(row)
        by_prompt[key] = row
    if twice:
        raise BadData(f"{source}: {quoted(twice)} found more than once; keep one completion a prompt")
    return by_prompt


def _parsed(source: str, number: int, row: DataRow) -> _Completion:
    where = f"{source}, row {number}"
    prompt, completion = _text(row, PROMPT, where), _text(row, COMPLETION, where)
    if prompt is None:
        raise BadData(f"{where}, column {column(row, PROMPT)!r}: null found; text is expected")
    generator = row.get("generator")
    name = generator if isinstance(generator, str) and generator else Path(source).name.split(".")[0]
    return _Completion(number, prompt, completion, name, index_of(row, where))


def _text(row: DataRow, names: tuple[str, ...], where: str) -> str | None:
    """Text of the first of these columns; None for a null. Raises BadData."""
    name = column(row, names)
    if name is None:
        raise BadData(f"{where}: no column {names[0]!r}; AlpacaEval's are instruction, output, generator")
    text = row[name]
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadData(f"{where}, column {name!r}: {kind_of(text)} found; text is expected")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadData(
            f"{where}, column {name!r}: half a character (a lone surrogate) found; write the file again as UTF-8"
        ) from None
    return text


def index_of(row: DataRow, where: str) -> int | None:
    """The row's `prompt_index`; None if it has none. Raises BadData if it is not a whole number."""
    value = row.get("prompt_index")
    if value is None:
        return None
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise BadData(f"{where}: prompt_index {short(value)}; a whole number is expected") from None
