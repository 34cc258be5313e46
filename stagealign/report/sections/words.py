"""Numbers as text with sign and interval; a missing number is a dash."""

from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"
MINUS = "−"
NOT_MEASURED = "not measured"


def signed(number: float | None, digits: int = 2) -> str:
    """`+1.43`, `−0.20`, or a dash."""
    return DASH if number is None else f"{number:+.{digits}f}".replace("-", MINUS)


def plain(number: float | None, digits: int = 2) -> str:
    """`0.44`, `−0.20`, or a dash."""
    return DASH if number is None else f"{number:.{digits}f}".replace("-", MINUS)


def percent(number: float | None) -> str:
    """`3%`, or a dash."""
    return DASH if number is None else f"{number:.0f}%"


def rate(number: float) -> str:
    """`1.5e-4`: a learning rate without padding."""
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def gain(metric: Mapping[str, Any] | None) -> str:
    """`+1.43 [+1.20, +1.60]`."""
    if not metric:
        return DASH
    return signed(metric["value"]) + _interval(metric.get("interval"), signed)


def score(metric: Mapping[str, Any] | None) -> str:
    """`0.31 [0.25, 0.37]`; a value of None is shown as its reason."""
    if not metric:
        return DASH
    if metric["value"] is None:
        return f"no value: {str(metric.get('reason', 'not known')).replace('-0', MINUS + '0')}"
    return plain(metric["value"]) + _interval(metric.get("interval"), plain)


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listing(items: Sequence[str], most: int = 8) -> str:
    """`a, b and c`, or `a, 1; b, 2` for items with commas; after `most` items, the number of the rest."""
    if len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    if any("," in item for item in items):
        return "; ".join(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def count(number: int, word: str) -> str:
    """`1 run`, `2 runs`, `3 starting policies`."""
    if number == 1:
        return f"1 {word}"
    return f"{number} {word[:-1]}ies" if word.endswith("y") else f"{number} {word}s"


def _interval(bounds: Any, show: Any) -> str:
    return f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""


def brief(number: float) -> str:
    """Three digits and a thousand's letter: `950`, `48.9M`, `1.02G`."""
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            digits = f"{number / size:#.3g}"
            return f"{digits.removesuffix('.')}{letter}"
    return f"{number:.0f}"
