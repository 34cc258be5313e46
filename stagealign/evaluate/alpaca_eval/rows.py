"""Input of AlpacaEval: each prompt with the completions of baseline and model, joined by prompt hash.

Files have AlpacaEval's own columns `instruction`, `output` and `generator`; `prompt` and `completion` are accepted.
The baseline's file defines the prompts, and all of them stay in the denominator.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import DataRow
from stagealign.data.records import prompt_hash
from stagealign.data.tables import digest_of, local_file, numbered_rows

PROMPT, COMPLETION = ("instruction", "prompt"), ("output", "completion")
NAMED = 3
"""Number of prompts that a message lists."""


@dataclass(frozen=True)
class BattleItem:
    """One prompt with the two completions."""

    index: int
    """The baseline's `prompt_index`, or the row's place in its file, from 0."""
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


@dataclass(frozen=True)
class _Completion:
    """One row of a file of completions."""

    number: int
    prompt: str
    completion: str
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
    items = []
    for place, (key, row) in enumerate(theirs.items()):
        index = place if row.index is None else row.index
        items.append(BattleItem(index, row.prompt, row.completion, ours[key].completion if key in ours else None))
    indices = [item.index for item in items]
    if len(set(indices)) != len(indices):
        twice = sorted({index for index in indices if indices.count(index) > 1})
        raise BadData(f"{baseline}: prompt_index {listed(twice)} found more than once; number each prompt once")
    files = {"outputs": file_facts(outputs), "baseline": file_facts(baseline)}
    names = [next(iter(rows.values())).generator for rows in (ours, theirs)]
    return Battle(tuple(items), names[0], names[1], files)


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
    texts = []
    for names in (PROMPT, COMPLETION):
        name = column(row, names)
        if name is None:
            raise BadData(f"{where}: no column {names[0]!r}; AlpacaEval's are instruction, output, generator")
        if not isinstance(row[name], str):
            raise BadData(f"{where}, column {name!r}: {kind_of(row[name])} found; text is expected")
        try:
            row[name].encode()
        except UnicodeEncodeError:
            raise BadData(
                f"{where}, column {name!r}: half a character (a lone surrogate) found; write the file again as UTF-8"
            ) from None
        texts.append(row[name])
    generator = row.get("generator")
    name = generator if isinstance(generator, str) and generator else Path(source).name.split(".")[0]
    return _Completion(number, texts[0], texts[1], name, index_of(row, where))


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
