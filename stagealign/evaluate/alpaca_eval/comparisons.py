"""Readers of judged comparisons and published weights; every row is checked."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import MISFIT, DataRow
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
from stagealign.data.tables import Tally, local_file, numbered_rows
from stagealign.evaluate.alpaca_eval.official_prompts import official_index

PROMPT = ("instruction", "prompt")
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "prompt_index": ("prompt_hash", *PROMPT),
    "generator": ("generator_2",),
    "preference": (),
    "baseline_chars": ("output_1",),
    "model_chars": ("output_2",),
}
"""The columns of a table of comparisons, each with those of alpaca_eval's `annotations.json` that say the same."""
COLUMNS = tuple(ALTERNATIVES)
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
"""Columns of the official weight files; the generator is in a first column without a name."""
LARGEST = {"baseline_chars": 1e9, "model_chars": 1e9, "instruction_difficulty": 1e3, "prompt_index": 1e15}
"""Largest accepted values; larger ones are never real and would overflow in the fit."""
AMBIGUOUS = (
    "say it with --preference-scale 1-2 (1 the baseline wins, 2 the model) or 0-1 (0 the baseline wins, 1 the model), "
    "or in a column preference_scale"
)


class UnusableRow(Exception):
    """Reason why a row makes its file unusable."""


class OddRow(Exception):
    """Reason why one comparison counts as failed."""


@dataclass(frozen=True)
class PromptKey:
    """What a row says about which prompt it is of."""

    hash: str | None = None
    """`prompt_hash` of the text; it decides if there is one."""
    index: int | None = None
    """The row's `prompt_index`."""

    @property
    def number(self) -> int | None:
        """AlpacaEval's own number of the prompt, else the row's `prompt_index`."""
        official = official_index(self.hash)
        return self.index if official is None else official

    @property
    def identity(self) -> str | int:
        """Value by which rows of one prompt are found."""
        return self.hash if self.hash is not None else -1 if self.index is None else self.index

    def __str__(self) -> str:
        return str(self.hash if self.number is None else self.number)


@dataclass(frozen=True)
class JudgedComparison:
    """Judgment of one answer of a generator against the baseline's."""

    prompt: PromptKey
    preference: float | None
    """From 1 (the baseline is preferred) to 2 (the model is); None for a failed judgment."""
    baseline_chars: float
    model_chars: float


@dataclass(frozen=True)
class GeneratorRows:
    """Rows of one generator in the order of the prompts' numbers, and what failed."""

    rows: Sequence[JudgedComparison]
    failures: Tally
    """Failed judgments by reason. A row without lengths is counted here and not in `rows`."""
    prompts: Sequence[PromptKey]
    """Prompts of all rows."""


def read_comparisons(source: str, scale: ScaleName | None = None) -> dict[str, GeneratorRows]:
    """Comparisons by generator, in the order of their first rows.

    `source`: .parquet, .csv, .jsonl or .json with `COLUMNS`, or alpaca_eval's own `annotations.json`. An odd judgment
    (empty, null, on no scale, an answer without a length) is counted as failed. Raises BadData, with examples, if a row
    names no prompt or generator, if a generator's prompt is repeated, or if the scale of the preferences is unclear.
    """
    unit, rows = checked_rows(source, ALTERNATIVES, DECLARING)
    table = _ComparisonTable(source, unit, scale)
    given = 0
    for number, row in rows:
        given += 1
        table.add(number, row)
    if not given:
        raise BadData(f"{source}: no rows; give one row for each generator and prompt")
    return table.result(given)


class _ComparisonTable:
    """Comparisons while they are read."""

    def __init__(self, source: str, unit: str, scale: ScaleName | None):
        self.source, self.unit, self.declared = source, unit, scale
        self.scale: PreferenceScale | None = None
        self.unusable = Tally(unit)
        self.failures: dict[str, Tally] = {}
        self.by_generator: dict[str, dict[str | int, tuple[JudgedComparison, Preference | None]]] = {}
        self.repeated: list[str] = []

    def add(self, number: int, row: DataRow) -> None:
        if self.scale is None:
            declared = self.declared or declared_scale(row, self.source)
            self.scale = PreferenceScale(self.source, self.unit, COMPARISONS, declared, AMBIGUOUS)
        try:
            generator, prompt = _generator(row), prompt_key(row)
        except UnusableRow as error:
            self.unusable.add(str(error), number)
            return
        mine = self.by_generator.setdefault(generator, {})
        failures = self.failures.setdefault(generator, Tally(self.unit))
        if prompt.identity in mine:
            self.repeated.append(f"{generator} on prompt {prompt} ({self.unit} {number})")
        preference: Preference | None = None
        try:
            preference = self.scale.add(number, row.get("preference"))
            if preference is None:
                failures.add("no preference", number)
        except OddPreference as error:
            failures.add(str(error), number)
        try:
            lengths = _length(row, "baseline_chars", "output_1"), _length(row, "model_chars", "output_2")
        except OddRow as error:
            if preference is not None:  # a failure is counted once
                failures.add(str(error), number)
            preference, lengths = None, (math.nan, math.nan)
        mine[prompt.identity] = JudgedComparison(prompt, None, *lengths), preference

    def result(self, given: int) -> dict[str, GeneratorRows]:
        source, unusable = self.source, self.unusable
        if unusable.drops:
            raise BadData(
                f"{source}: {unusable.drops.total()} of {given} rows cannot be used: {unusable}; correct them"
            )
        if self.repeated:
            raise BadData(
                f"{source}: {len(self.repeated)} rows repeat a generator's prompt: {listed(self.repeated)}; keep one "
                "of each"
            )
        return {
            name: GeneratorRows(self._judged(name), self.failures[name], [row.prompt for row, _ in mine.values()])
            for name, mine in self.by_generator.items()
        }

    def _judged(self, generator: str) -> list[JudgedComparison]:
        assert self.scale is not None
        self.scale.scale()
        rows = [
            replace(row, preference=None if preference is None else 1 + self.scale.share(preference))
            for row, preference in self.by_generator[generator].values()
            if not math.isnan(row.model_chars)
        ]
        return sorted(rows, key=lambda row: math.inf if row.prompt.number is None else row.prompt.number)


def read_weights(source: str) -> dict[str, tuple[float, float, float]]:
    """Weights (length, difficulty, base) by generator, from a file in the official format. Raises BadData."""
    unit, rows = checked_rows(source, dict.fromkeys(WEIGHTS, ()), ("",))
    tally, weights = Tally(unit), dict[str, tuple[float, float, float]]()
    for number, row in rows:
        try:
            name = str(row.get("", "")).strip()
            if not name or name in weights:
                raise UnusableRow(f"generator {name!r} found again" if name else "no name in the first column")
            length, difficulty, base = (number_in(row, column) for column in WEIGHTS)
            weights[name] = (length, difficulty, base)
        except UnusableRow as error:
            tally.add(str(error), number)
    whole_table(source, tally, weights)
    return weights


def checked_rows(
    source: str, columns: Mapping[str, tuple[str, ...]], also: Iterable[str] = ()
) -> tuple[str, Iterable[tuple[int, DataRow]]]:
    """(`line` or `row`, numbered rows) of a file whose first row has each of `columns` or one of its alternatives.

    Raises BadData.
    """
    if local_file(source) is None:
        raise BadData(f"{source}: no such file; give a .parquet, .csv, .jsonl or .json file")
    wanted = [name for column, others in columns.items() for name in (column, *others)]
    unit, rows = numbered_rows(source, (*wanted, *also))

    def checked() -> Iterable[tuple[int, DataRow]]:
        for place, (number, row) in enumerate(rows):
            missing = [column for column, others in columns.items() if not {column, *others} & row.keys()]
            if place == 0 and missing:
                raise BadData(f"{source}: no column {listed(missing)}; found: {listed(row)}; needed: {listed(columns)}")
            yield number, row

    return unit, checked()


def whole_table(source: str, tally: Tally, values: Mapping[Any, Any]) -> None:
    """Raises BadData if rows were unusable or there are none."""
    if tally.drops:
        raise BadData(f"{source}: {tally.drops.total()} rows cannot be used: {tally}; correct them")
    if not values:
        raise BadData(f"{source}: no rows; give the whole file")


def prompt_key(row: DataRow, index_names: Sequence[str] = ("prompt_index",)) -> PromptKey:
    """The prompt that a row names: by its text, its `prompt_hash` or its index. Raises UnusableRow."""
    text = next((row[name] for name in PROMPT if isinstance(row.get(name), str)), None)
    given = row.get("prompt_hash")
    found = prompt_hash(text) if text is not None else given if isinstance(given, str) and given else None
    name = next((name for name in index_names if row.get(name) not in (None, "")), None)
    if name is None and found is not None:
        return PromptKey(found)
    value = number_in({index_names[0]: row.get(index_names[0] if name is None else name)}, index_names[0])
    if value != int(value):
        raise UnusableRow(f"prompt_index {short(value)} is not a whole number")
    return PromptKey(found, int(value))


def _generator(row: DataRow) -> str:
    generator = row.get("generator_2", row.get("generator"))
    if generator is MISFIT:
        raise UnusableRow("more or fewer cells than the header")
    if not isinstance(generator, str) or not generator.strip():
        raise UnusableRow("no generator")
    return generator


def _length(row: DataRow, column: str, text: str) -> float:
    """Characters of an answer, by its column or its text. Raises OddRow."""
    if column not in row and isinstance(row.get(text), str):
        return float(len(row[text]))
    if column not in row:
        raise OddRow(f"no {text}" if row.get(text) is None else f"{text} is {kind_of(row[text])}, not text")
    try:
        number = number_in(row, column)
    except UnusableRow as error:
        raise OddRow(str(error)) from None
    if number < 0:
        raise OddRow("a negative number of characters")
    return number


def number_in(row: DataRow, column: str) -> float:
    """A finite number in a column, of a size that is real. Raises UnusableRow."""
    value = row.get(column)
    if value is MISFIT:
        raise UnusableRow("more or fewer cells than the header")
    if value is None or value == "":
        raise UnusableRow(f"no {column}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnusableRow(f"{column} is {kind_of(value)}, not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise UnusableRow(f"{column} {short(value)} is not a number") from None
    if not math.isfinite(number):
        raise UnusableRow(f"{column} {short(value)} is not finite")
    if abs(number) > LARGEST.get(column, 1e6):
        raise UnusableRow(f"{column} {short(value)} is larger than any can be")
    return number
