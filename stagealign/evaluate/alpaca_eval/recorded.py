"""Recorded annotations: AlpacaEval's own `annotations.json`, or a table by prompt_index."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import isfinite
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import DataRow
from stagealign.data.preference_scale import (
    COMPARISONS,
    DECLARING,
    OddPreference,
    Preference,
    PreferenceScale,
    ScaleName,
    declared_scale,
)
from stagealign.data.records import prompt_hash
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer
from stagealign.evaluate.alpaca_eval.comparisons import AMBIGUOUS
from stagealign.evaluate.alpaca_eval.result import FAILURES_ALLOWED
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
    *DECLARING,
)


@dataclass(frozen=True)
class _Record:
    number: int
    row: DataRow
    prompt: str
    """Text of the prompt, or its index as text, for error messages."""
    item: BattleItem | None
    """None if the baseline lacks the prompt."""


def annotations(
    source: str, battle: Battle, scale: ScaleName | None = None
) -> tuple[dict[str, JudgeAnswer], list[str]]:
    """(answers by prompt hash, names of the annotators) for the battle's generator.

    An odd annotation counts as failed, with its row. Raises BadData, naming rows and prompts, for unknown or repeated
    prompts, for annotations of other texts than the battle's, and for preferences on an unclear scale.
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
    if len(other) > FAILURES_ALLOWED * len(records):
        raise BadData(f"{source}: {quoted(other)} annotated for other texts than those given; give the annotated texts")
    judges = {name for _, row in mine if isinstance(name := row.get("annotator"), str)}
    declared = scale or declared_scale(rows[0][1], source)
    reading = PreferenceScale(source, "row", COMPARISONS, declared, AMBIGUOUS)
    answers = _answers(records, {record.number for record in other}, reading)
    return answers, sorted(judges)


def _answers(records: Sequence[_Record], other: Set[int], scale: PreferenceScale) -> dict[str, JudgeAnswer]:
    """Answer of each record; those with a number in `other` failed. Raises BadData for an unclear scale."""
    read: dict[str, Preference | JudgeAnswer] = {}
    for record in records:
        assert record.item is not None
        value = record.row.get("preference")
        try:
            preference = scale.add(record.number, value)
        except OddPreference as error:
            read[record.item.hash] = JudgeAnswer(failed=f"the annotation has preference {short(value)}: {error}")
            continue
        if record.number in other:
            read[record.item.hash] = JudgeAnswer(failed="annotated for another text than the one given")
        elif preference is None:
            read[record.item.hash] = JudgeAnswer(failed=f"the annotation has preference {short(value)}")
        else:
            read[record.item.hash] = preference
    scale.scale()
    return {
        name: found if isinstance(found, JudgeAnswer) else JudgeAnswer(1 + scale.share(found))
        for name, found in read.items()
    }


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
        index, known = index_of(row, where), row.get("prompt_hash")
        if isinstance(known, str) and known:
            records.append(_Record(number, row, known if index is None else str(index), by_hash.get(known)))
            continue
        if index is None:
            raise BadData(f"{where}: neither `instruction` nor `prompt_index`; one of them is expected")
        if battle.placed:
            raise BadData(
                f"{where}: prompt_index {index} found, and the baseline does not number its prompts; give the "
                "annotations `instruction`, or the baseline `prompt_index`"
            )
        records.append(_Record(number, row, str(index), by_index.get(index)))
    return records


def _generator(row: DataRow) -> str | None:
    """Generator of the model's completion; None if the row does not name it."""
    value = row.get("generator_2", row.get("generator"))
    return value if isinstance(value, str) else None


def _same(row: DataRow, item: BattleItem) -> bool:
    """True if the texts and lengths in the row, as far as it has them, are those of the item.

    A missing completion agrees with an empty one, as alpaca_eval drops empty answers from a model's file and annotates
    them as lost.
    """
    texts = {"output_1": item.baseline, "output_2": item.model or ""}
    lengths = {"baseline_chars": item.baseline, "model_chars": item.model or ""}
    agreements = [row[name] == text for name, text in texts.items() if row.get(name) is not None]
    agreements += [_number(row[name]) == len(text) for name, text in lengths.items() if row.get(name) is not None]
    return all(agreements)


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and isfinite(number) else None


def identity_of(judges: list[str], file: Mapping[str, str]) -> Identity:
    """Entry of the judge in the record: its annotators and the file."""
    return {"kind": "recorded", "version": 1, "file": dict(file), "annotators": judges}
