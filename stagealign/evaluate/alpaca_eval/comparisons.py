"""Judged comparisons with a baseline, instruction difficulties and published weights, from files; every row checked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import kind_of, listed, short
from stagealign.data.formats import MISFIT, TableRow
from stagealign.data.tables import Tally, local_file, numbered_rows

COLUMNS = ("prompt_index", "generator", "preference", "baseline_chars", "model_chars")
DIFFICULTY = "instruction_difficulty"
INDEX = ("prompt_index", "index", "")
"""Names of the column of a prompt's index, the first that is there; the published difficulties give it none."""
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
"""Columns of the official weight files; the generator's name stands in a first column without a name."""
LARGEST = {"baseline_chars": 1e9, "model_chars": 1e9, "instruction_difficulty": 1e3, "prompt_index": 1e15}
"""What no text, prompt or official weight has; beyond it the fit's numbers would overflow."""


class _Unusable(Exception):
    """Why a row cannot be used."""


@dataclass(frozen=True)
class JudgedComparison:
    """One answer of a generator, held against the baseline's."""

    prompt_index: int
    preference: float | None
    """1 = the baseline is preferred ... 2 = the model is; None for a judgment that failed."""
    baseline_chars: float
    model_chars: float


def read_comparisons(source: str, difficulty: Mapping[int, float]) -> dict[str, list[JudgedComparison]]:
    """Comparisons by generator in order of the file's first mention, each list in order of the prompt index.

    `source`: .parquet, .csv, .jsonl or .json with `COLUMNS`. An empty, null or NaN preference is a failed judgment and
    stays a row. Any other row that cannot be used, a second row for a generator's prompt, or a prompt without a
    difficulty is an error for the whole file, which lists the first of each kind. Raises BadData.
    """
    unit, rows = _rows(source, COLUMNS)
    tally, given = Tally(unit), 0
    found: dict[str, dict[int, JudgedComparison]] = {}
    repeated: list[str] = []
    strange: dict[int, None] = {}
    for number, row in rows:
        given += 1
        try:
            generator, comparison = _comparison(row)
        except _Unusable as error:
            tally.add(str(error), number)
            continue
        mine = found.setdefault(generator, {})
        if comparison.prompt_index in mine:
            repeated.append(f"{generator} on prompt {comparison.prompt_index} ({unit} {number})")
        if comparison.prompt_index not in difficulty:
            strange[comparison.prompt_index] = None
        mine[comparison.prompt_index] = comparison
    if not given:
        raise BadData(f"{source}: no rows; give one row for each generator and prompt")
    if tally.drops:
        raise BadData(f"{source}: {tally.drops.total()} of {given} rows cannot be used: {tally}; correct them")
    if repeated:
        raise BadData(
            f"{source}: {len(repeated)} rows repeat a generator's prompt: {listed(repeated)}; keep one of each"
        )
    if strange:
        raise BadData(
            f"{source}: {len(strange)} prompts have no difficulty: prompt_index {listed(sorted(strange))}; the "
            f"difficulty file has {len(difficulty)} prompts: {min(difficulty)} to {max(difficulty)}"
        )
    return {name: [mine[index] for index in sorted(mine)] for name, mine in found.items()}


def read_difficulty(source: str) -> dict[int, float]:
    """Instruction difficulty by prompt index, ascending, in logits of the official model. Raises BadData."""
    unit, rows = _rows(source, (DIFFICULTY,), INDEX)
    tally, found = Tally(unit), dict[int, float]()
    for number, row in rows:
        try:
            index = _index(row)
            if index in found:
                raise _Unusable(f"prompt_index {index} found again")
            found[index] = _number(row, DIFFICULTY)
        except _Unusable as error:
            tally.add(str(error), number)
    _whole(source, tally, found)
    return dict(sorted(found.items()))


def read_weights(source: str) -> dict[str, tuple[float, float, float]]:
    """Weights (length, difficulty, base) by generator, of a file as the official package writes it. Raises BadData."""
    unit, rows = _rows(source, WEIGHTS)
    tally, found = Tally(unit), dict[str, tuple[float, float, float]]()
    for number, row in rows:
        try:
            name = str(row.get("", "")).strip()
            if not name or name in found:
                raise _Unusable(f"generator {name!r} found again" if name else "no name in the first column")
            length, difficulty, base = (_number(row, column) for column in WEIGHTS)
            found[name] = (length, difficulty, base)
        except _Unusable as error:
            tally.add(str(error), number)
    _whole(source, tally, found)
    return found


def _rows(
    source: str, columns: tuple[str, ...], also: tuple[str, ...] = ()
) -> tuple[str, Iterable[tuple[int, TableRow]]]:
    """(what the numbers count, rows) of a file whose first row has these columns, and one of `also`."""
    if local_file(source) is None:
        raise BadData(f"{source}: no such file; give a .parquet, .csv, .jsonl or .json file")
    unit, rows = numbered_rows(source, (*columns, *also))

    def checked() -> Iterable[tuple[int, TableRow]]:
        for place, (number, row) in enumerate(rows):
            missing = [column for column in columns if column not in row]
            missing += also[:1] if also and not any(column in row for column in also) else []
            if place == 0 and missing:
                needed = listed([*columns, *also[:1]])
                raise BadData(f"{source}: no column {listed(missing)}; found: {listed(row)}; needed: {needed}")
            yield number, row

    return unit, checked()


def _whole(source: str, tally: Tally, found: Mapping[Any, Any]) -> None:
    if tally.drops:
        raise BadData(f"{source}: {tally.drops.total()} rows cannot be used: {tally}; correct them")
    if not found:
        raise BadData(f"{source}: no rows; give the whole file")


def _comparison(row: TableRow) -> tuple[str, JudgedComparison]:
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


def _preference(row: TableRow) -> float | None:
    value = row.get("preference")
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "null", "none")):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return _number(row, "preference")


def _index(row: TableRow) -> int:
    name = next((one for one in INDEX if one in row), INDEX[0])
    value = _number({INDEX[0]: row.get(name)}, INDEX[0])
    if value != int(value):
        raise _Unusable(f"prompt_index {short(value)} is not a whole number")
    return int(value)


def _number(row: TableRow, column: str) -> float:
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
