"""Readers of judged comparisons, instruction difficulties and published weights; every row is checked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import MISFIT, DataRow
from stagealign.data.tables import Tally, local_file, numbered_rows

COLUMNS = ("prompt_index", "generator", "preference", "baseline_chars", "model_chars")
DIFFICULTY = "instruction_difficulty"
INDEX = ("prompt_index", "index", "")
"""Possible names of the column with a prompt's index, by precedence; published difficulties leave the name empty."""
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
"""Columns of the official weight files; the generator is in a first column without a name."""
LARGEST = {"baseline_chars": 1e9, "model_chars": 1e9, "instruction_difficulty": 1e3, "prompt_index": 1e15}
"""Largest accepted values; larger ones are never real and would overflow in the fit."""


class _Unusable(Exception):
    """Reason why a row cannot be used."""


@dataclass(frozen=True)
class JudgedComparison:
    """Judgment of one answer of a generator against the baseline's."""

    prompt_index: int
    preference: float | None
    """From 1 (the baseline is preferred) to 2 (the model is); None for a failed judgment."""
    baseline_chars: float
    model_chars: float


def read_comparisons(source: str, difficulty: Mapping[int, float]) -> dict[str, list[JudgedComparison]]:
    """Comparisons by generator, in the order of their first rows; each list is in the order of the prompt index.

    `source`: .parquet, .csv, .jsonl or .json with `COLUMNS`. An empty, null or NaN preference is a failed judgment.
    Raises BadData, with examples, if another row is unusable, repeats a generator's prompt, or has a prompt without a
    difficulty.
    """
    unit, rows = _rows(source, COLUMNS)
    tally, given = Tally(unit), 0
    by_generator: dict[str, dict[int, JudgedComparison]] = {}
    repeated: list[str] = []
    without_difficulty: dict[int, None] = {}
    for number, row in rows:
        given += 1
        try:
            generator, comparison = _comparison(row)
        except _Unusable as error:
            tally.add(str(error), number)
            continue
        mine = by_generator.setdefault(generator, {})
        if comparison.prompt_index in mine:
            repeated.append(f"{generator} on prompt {comparison.prompt_index} ({unit} {number})")
        if comparison.prompt_index not in difficulty:
            without_difficulty[comparison.prompt_index] = None
        mine[comparison.prompt_index] = comparison
    if not given:
        raise BadData(f"{source}: no rows; give one row for each generator and prompt")
    if tally.drops:
        raise BadData(f"{source}: {tally.drops.total()} of {given} rows cannot be used: {tally}; correct them")
    if repeated:
        raise BadData(
            f"{source}: {len(repeated)} rows repeat a generator's prompt: {listed(repeated)}; keep one of each"
        )
    if without_difficulty:
        raise BadData(
            f"{source}: {len(without_difficulty)} prompts have no difficulty: prompt_index "
            f"{listed(sorted(without_difficulty))}; the difficulty file has {len(difficulty)} prompts: "
            f"{min(difficulty)} to {max(difficulty)}"
        )
    return {name: [mine[index] for index in sorted(mine)] for name, mine in by_generator.items()}


def read_difficulty(source: str) -> dict[int, float]:
    """Instruction difficulty by prompt index, ascending, in logits of the official model. Raises BadData."""
    unit, rows = _rows(source, (DIFFICULTY,), INDEX)
    tally, difficulty = Tally(unit), dict[int, float]()
    for number, row in rows:
        try:
            index = _index(row)
            if index in difficulty:
                raise _Unusable(f"prompt_index {index} found again")
            difficulty[index] = _number(row, DIFFICULTY)
        except _Unusable as error:
            tally.add(str(error), number)
    _whole(source, tally, difficulty)
    return dict(sorted(difficulty.items()))


def read_weights(source: str) -> dict[str, tuple[float, float, float]]:
    """Weights (length, difficulty, base) by generator, from a file in the official format. Raises BadData."""
    unit, rows = _rows(source, WEIGHTS)
    tally, weights = Tally(unit), dict[str, tuple[float, float, float]]()
    for number, row in rows:
        try:
            name = str(row.get("", "")).strip()
            if not name or name in weights:
                raise _Unusable(f"generator {name!r} found again" if name else "no name in the first column")
            length, difficulty, base = (_number(row, column) for column in WEIGHTS)
            weights[name] = (length, difficulty, base)
        except _Unusable as error:
            tally.add(str(error), number)
    _whole(source, tally, weights)
    return weights


def _rows(
    source: str, columns: tuple[str, ...], also: tuple[str, ...] = ()
) -> tuple[str, Iterable[tuple[int, DataRow]]]:
    """(`line` or `row`, numbered rows) of a file whose first row has all `columns` and one of `also`.

    Raises BadData.
    """
    if local_file(source) is None:
        raise BadData(f"{source}: no such file; give a .parquet, .csv, .jsonl or .json file")
    unit, rows = numbered_rows(source, (*columns, *also))

    def checked() -> Iterable[tuple[int, DataRow]]:
        for place, (number, row) in enumerate(rows):
            missing = [column for column in columns if column not in row]
            missing += also[:1] if also and not any(column in row for column in also) else []
            if place == 0 and missing:
                needed = listed([*columns, *also[:1]])
                raise BadData(f"{source}: no column {listed(missing)}; found: {listed(row)}; needed: {needed}")
            yield number, row

    return unit, checked()


def _whole(source: str, tally: Tally, values: Mapping[Any, Any]) -> None:
    if tally.drops:
        raise BadData(f"{source}: {tally.drops.total()} rows cannot be used: {tally}; correct them")
    if not values:
        raise BadData(f"{source}: no rows; give the whole file")


def _comparison(row: DataRow) -> tuple[str, JudgedComparison]:
    generator = row.get("generator")
    if generator is MISFIT:
        raise _Unusable("more or fewer cells than the header")
    if not isinstance(generator, str) or not generator.strip():
        raise _Unusable("no generator")
    preference = _preference(row)
    if preference is not None and not 1 <= preference <= 2:
        raise _Unusable("preference outside 1 (baseline) to 2 (model)")
    baseline, model = _number(row, "baseline_chars"), _number(row, "model_chars")
    if min(baseline, model) < 0:
        raise _Unusable("a negative number of characters")
    return generator, JudgedComparison(_index(row), preference, baseline, model)


def _preference(row: DataRow) -> float | None:
    value = row.get("preference")
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "null", "none")):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return _number(row, "preference")


def _index(row: DataRow) -> int:
    name = next((column for column in INDEX if column in row), INDEX[0])
    value = _number({INDEX[0]: row.get(name)}, INDEX[0])
    if value != int(value):
        raise _Unusable(f"prompt_index {short(value)} is not a whole number")
    return int(value)


def _number(row: DataRow, column: str) -> float:
    value = row.get(column)
    if value is MISFIT:
        raise _Unusable("more or fewer cells than the header")
    if value is None or value == "":
        raise _Unusable(f"no {column}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Unusable(f"{column} is {kind_of(value)}, not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Unusable(f"{column} {short(value)} is not a number") from None
    if not math.isfinite(number):
        raise _Unusable(f"{column} {short(value)} is not finite")
    if abs(number) > LARGEST.get(column, 1e6):
        raise _Unusable(f"{column} {short(value)} is larger than any can be")
    return number
