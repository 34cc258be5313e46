"""Recorded annotations: AlpacaEval's own `annotations.json`, or a table by prompt_index."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import DataRow
from stagealign.data.records import prompt_hash
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer
from stagealign.evaluate.alpaca_eval.rows import PROMPT, Battle, BattleItem, column, index_of, quoted, rows_of
from stagealign.store.artifact import Identity

COLUMNS = (
    *PROMPT,
    "prompt_index",
    "preference",
    "generator",
    "generator_2",
    "output_1",
    "output_2",
    "baseline_chars",
    "model_chars",
    "annotator",
)


@dataclass(frozen=True)
class _Record:
    number: int
    row: DataRow
    prompt: str
    """Text of the prompt, or its index as text, for error messages."""
    item: BattleItem | None
    """None if the baseline lacks the prompt."""


def annotations(source: str, battle: Battle) -> tuple[dict[str, JudgeAnswer], list[str]]:
    """(answers by prompt hash, names of the annotators) for the battle's generator.

    Raises BadData, naming rows and prompts, for unknown or repeated prompts, and for annotations of other texts than
    the battle's.
    """
    rows = rows_of(source, COLUMNS)
    if "preference" not in rows[0][1]:
        raise BadData(
            f"{source}: columns {listed(rows[0][1])}; `preference` and `instruction` or prompt_index expected"
        )
    mine = [(number, row) for number, row in rows if _generator(row) in (None, battle.generator)]
    if not mine:
        names = dict.fromkeys(_generator(row) for _, row in rows)
        raise BadData(
            f"{source}: no annotation of {battle.generator!r}; it has {listed(names)}; rename the generator of OUTPUTS"
        )
    records = _records(source, mine, battle)
    unknown = [record for record in records if record.item is None]
    if unknown:
        raise BadData(f"{source}: {quoted(unknown)} not in the baseline; these are annotations of other prompts")
    counts = Counter(record.item.hash for record in records if record.item)
    twice = [record for record in records if record.item and counts[record.item.hash] > 1]
    if twice:
        raise BadData(f"{source}: {quoted(twice)} annotated more than once; keep one annotation a prompt")
    other = [record for record in records if record.item and not _same(record.row, record.item)]
    if other:
        raise BadData(f"{source}: {quoted(other)} annotated for other texts than those given; give the annotated texts")
    judges = {name for _, row in mine if isinstance(name := row.get("annotator"), str)}
    return {record.item.hash: _answer(record.row.get("preference")) for record in records if record.item}, sorted(
        judges
    )


def _records(source: str, rows: list[tuple[int, DataRow]], battle: Battle) -> list[_Record]:
    by_hash = {item.hash: item for item in battle.items}
    by_index = {item.index: item for item in battle.items}
    records = []
    for number, row in rows:
        name = column(row, PROMPT)
        where = f"{source}, row {number}"
        if name is not None:
            if not isinstance(row[name], str):
                raise BadData(f"{where}, column {name!r}: {kind_of(row[name])} found; text is expected")
            records.append(_Record(number, row, row[name], by_hash.get(prompt_hash(row[name]))))
            continue
        index = index_of(row, where)
        if index is None:
            raise BadData(f"{where}: neither `instruction` nor `prompt_index`; one of them is expected")
        records.append(_Record(number, row, str(index), by_index.get(index)))
    return records


def _generator(row: DataRow) -> str | None:
    """Generator of the model's completion; None if the row does not name it."""
    value = row.get("generator_2", row.get("generator"))
    return value if isinstance(value, str) else None


def _same(row: DataRow, item: BattleItem) -> bool:
    """True if the texts and lengths in the row, as far as it has them, are those of the item."""
    texts = {"output_1": item.baseline, "output_2": item.model}
    lengths = {"baseline_chars": item.baseline, "model_chars": item.model}
    agreements = [row[name] == text for name, text in texts.items() if row.get(name) is not None]
    agreements += [
        _number(row[name]) == (None if text is None else len(text))
        for name, text in lengths.items()
        if row.get(name) is not None
    ]
    return all(agreements)


def _answer(value: Any) -> JudgeAnswer:
    """The annotation as an answer. 0 is AlpacaEval's old code for a draw; other values outside 1 to 2 are failures."""
    number = _number(value)
    if number == 0:
        number = 1.5
    if number is None or not 1 <= number <= 2:
        return JudgeAnswer(failed=f"the annotation has preference {short(value)}")
    return JudgeAnswer(number)


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and isfinite(number) else None


def identity_of(judges: list[str], file: Mapping[str, str]) -> Identity:
    """Entry of the judge in the record: its annotators and the file."""
    return {"kind": "recorded", "version": 1, "file": dict(file), "annotators": judges}
