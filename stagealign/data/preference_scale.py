"""The one reading of recorded preferences: which of two scales a file's numbers are on, and whom a number prefers.

| scale | first side (`a`, the baseline) wins | tie | second side (`b`, the model) wins |
|---|---|---|---|
| `1-2`, AlpacaEval's | 1 | 1.5; among comparisons also 0, the code of AlpacaEval 1 | 2 |
| `0-1`, pairs: the share of `a` | 1 | 0.5 | 0 |
| `0-1`, comparisons: the share of the model | 0 | 0.5 | 1 |

A word is a side's name or `tie`. Nothing is guessed: numbers that two scales explain differently raise BadData.
Source of `1-2`: alpaca_eval 0.6.6, `annotators/pairwise_evaluator.py` and `metrics/winrate.py`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from stagealign.base.errors import BadData
from stagealign.base.words import short
from stagealign.data.formats import MISFIT, DataRow

ScaleName: TypeAlias = Literal["1-2", "0-1"]
SCALES: tuple[ScaleName, ...] = ("1-2", "0-1")
SCALE_COLUMN = "preference_scale"
"""Column that says the scale of the file."""
OWN_COLUMNS = ("prompt_hash", "failed")
"""Columns that together only `stagealign alpaca-eval --annotations` writes, on `1-2`."""
WRITTEN_BY_ALPACA_EVAL = ("raw_completion", "time_per_example", "price_per_example")
"""Columns of which each is written by alpaca_eval alone, on `1-2`."""
DECLARING = (SCALE_COLUMN, *OWN_COLUMNS, *WRITTEN_BY_ALPACA_EVAL)
EMPTY = ("", "nan", "null", "none")
ODD_ALLOWED = 0.01
"""Share of values on no scale above which they are no accidents: the file has another scale."""
Preference: TypeAlias = float | Literal["first", "tie", "second"]
"""A preference as it stands in a file: a number on the file's scale, or a side."""


class OddPreference(Exception):
    """Reason why one value is no preference; rows are counted by it."""


@dataclass(frozen=True)
class SideNames:
    """The two sides of a file's comparisons."""

    first: str
    second: str
    share_of_first: bool
    """Whose share a number on `0-1` is."""
    zero_is_draw: bool
    """Whether 0 among numbers above 1 is AlpacaEval 1's code of a draw."""


PAIRS = SideNames("a", "b", share_of_first=True, zero_is_draw=False)
COMPARISONS = SideNames("baseline", "model", share_of_first=False, zero_is_draw=True)


@dataclass
class PreferenceScale:
    """The preferences of one file: `add` each value, then read the shares."""

    source: str
    unit: str
    """Unit of the row numbers in messages."""
    sides: SideNames
    declared: ScaleName | None = None
    """Scale that an option or a column of the file names; None to find it."""
    fix: str = ""
    """What to do about a file that is ambiguous, for its message."""
    _seen: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """The first (row number, value) of each group: `0`, `below 1`, `1`, `above 1`, and `odd`."""
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, number: int, value: Any) -> Preference | None:
        """The preference in a cell; None for a failed judgment (empty, null, NaN, infinite).

        Raises OddPreference for a value that is on no scale, BadData as soon as two values belong to different scales.
        """
        word = {self.sides.first: "first", "tie": "tie", self.sides.second: "second"}
        if isinstance(value, str) and value.strip().lower() in word:
            side: Preference = word[value.strip().lower()]  # type: ignore[assignment]
            return side
        try:
            read = _number(value)
        except OddPreference:
            self._count("odd", number, value)
            raise
        if read is None:
            return None
        low, high = {"1-2": (1, 2), "0-1": (0, 1)}.get(self.declared or "", (0, 2))
        draw = read == 0 and self.sides.zero_is_draw and self.declared != "0-1"
        if not (low <= read <= high or draw):
            self._count("odd", number, value)
            raise OddPreference(self._outside(low, high))
        self._count("0" if read == 0 else "below 1" if read < 1 else "1" if read == 1 else "above 1", number, value)
        self._refuse_mixture()
        return read

    def scale(self) -> ScaleName:
        """Scale of the numbers added. Raises BadData for numbers that two scales explain, or that fit none."""
        odd, numbers = self._counts.get("odd", 0), sum(self._counts.values())
        if odd > max(1, ODD_ALLOWED * numbers):
            number, value = self._seen["odd"]
            raise BadData(
                f"{self.source}, column 'preference': {odd} of {numbers} values are on no known scale, the first "
                f"{short(value)} in {self.unit} {number}; {self.meaning}"
            )
        if self.declared is not None:
            return self.declared
        if "above 1" in self._seen:
            return "1-2"
        if not self.sides.share_of_first and {"0", "below 1", "1"} & self._seen.keys():
            raise BadData(
                f"{self.source}, column 'preference': {self._found()} found and nothing above 1, which does not say "
                f"who wins at 1; {self.fix}"
            )
        return "0-1"

    def share(self, value: Preference) -> float:
        """Share by which the first side of a pair, or the model of a comparison, is preferred; in [0, 1]."""
        if isinstance(value, str):
            first = {"first": 1.0, "tie": 0.5, "second": 0.0}[value]
        elif self.scale() == "0-1":
            return value
        else:
            first = 0.5 if value == 0 else 2 - value
        return first if self.sides.share_of_first else 1 - first

    @property
    def meaning(self) -> str:
        """The values of both scales, for messages."""
        first, second = self.sides.first, self.sides.second
        whose, other = (first, second) if self.sides.share_of_first else (second, first)
        return (
            f"write how far {whose} is preferred, from 0.0 ({other} wins) over 0.5 (tie) to 1.0 ({whose} wins), or "
            f'"{first}", "tie", "{second}", or AlpacaEval\'s 1 ({first}) to 2 ({second}); leave a failed judgment empty'
        )

    def _count(self, group: str, number: int, value: Any) -> None:
        self._seen.setdefault(group, (number, value))
        self._counts[group] = self._counts.get(group, 0) + 1

    def _refuse_mixture(self) -> None:
        lower = ("below 1",) if self.sides.zero_is_draw else ("below 1", "0")
        low = next((name for name in lower if name in self._seen), "")
        if low and "above 1" in self._seen:
            (at, below), (there, above) = self._seen[low], self._seen["above 1"]
            raise BadData(
                f"{self.source}, column 'preference': {below!r} in {self.unit} {at} and {above!r} in {self.unit} "
                f"{there} belong to different scales; {self.meaning}"
            )

    def _found(self) -> str:
        names = [name for name in ("0", "below 1", "1") if name in self._seen]
        return "only 1" if names == ["1"] else "numbers from 0 to 1" if "below 1" in names else " and ".join(names)

    def _outside(self, low: int, high: int) -> str:
        if self.declared is None and not self.sides.share_of_first:
            return "preference outside 1 (baseline) to 2 (model)"
        return f"preference outside {low} to {high}"


def declared_scale(row: DataRow, source: str) -> ScaleName | None:
    """Scale that the columns of a file's first row declare; None if they do not. Raises BadData for an unknown one."""
    value = row.get(SCALE_COLUMN)
    if value is not None and value is not MISFIT:
        return scale_named(str(value), f"{source}, column {SCALE_COLUMN!r}")
    if all(name in row for name in OWN_COLUMNS) or any(name in row for name in WRITTEN_BY_ALPACA_EVAL):
        return "1-2"
    return None


def scale_named(name: str, where: str) -> ScaleName:
    """The scale of that name. Raises BadData, beginning with `where`, for another name."""
    for scale in SCALES:
        if name.strip() == scale:
            return scale
    raise BadData(f"{where}: {short(name)} found; write 1-2 (1 baseline, 2 model) or 0-1 (0 baseline, 1 model)")


def _number(value: Any) -> float | None:
    """`value` as a finite number; None if it is empty, null or not finite. Raises OddPreference for anything else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in EMPTY):
        return None
    if value is MISFIT:
        raise OddPreference("more or fewer cells than the header")
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise OddPreference("preference that is no number") from None
    return number if math.isfinite(number) else None
