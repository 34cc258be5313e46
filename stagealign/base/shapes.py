"""Checks of values read from files: a shape describes a valid value, and an error names the first misfit."""

import math
from collections.abc import Callable, Iterable
from typing import Any

NUMBER = "a finite number"
SHARE = "a share from 0 to 1"
TEXT = "text"
WHOLE = "a whole number"
FLAG = "true or false"
ANY = "anything"
Fits = Callable[[Any], bool]


class Or:
    """A shape, or null."""

    def __init__(self, shape: Any):
        self.shape = shape


class Map:
    """An object whose values all have the same shape."""

    def __init__(self, shape: Any):
        self.shape = shape


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """First misfit, such as `rounds.0.source is a list, text expected`; None if the value fits.

    A shape is one of the words above, a list of one shape (a list of any length) or of several (of that length), a
    mapping (an object with these keys; one that ends in `?` may be absent), an `Or` or a `Map`.
    """
    return None if _fitting(shape)(value) else _misfit(value, shape, where)


def _fitting(shape: Any) -> Fits:
    """Predicate for a shape, made once. It does not locate a misfit, as nearly all values fit."""
    known = _predicates.get(id(shape))
    if known is None or known[0] is not shape:
        _predicates[id(shape)] = known = (shape, _predicate(shape))
    return known[1]


def _predicate(shape: Any) -> Fits:
    if isinstance(shape, str):
        return KINDS[shape]
    if isinstance(shape, Or):
        inner = _predicate(shape.shape)
        return lambda value: value is None or inner(value)
    if isinstance(shape, Map):
        each = _predicate(shape.shape)
        return lambda value: isinstance(value, dict) and all(map(each, value.values()))
    if isinstance(shape, list) and len(shape) == 1:
        every = _predicate(shape[0])
        return lambda value: isinstance(value, list) and all(map(every, value))
    if isinstance(shape, list) and len(set(map(id, shape))) == 1:
        each_item, count = _predicate(shape[0]), len(shape)
        return lambda value: isinstance(value, list) and len(value) == count and all(map(each_item, value))
    if isinstance(shape, list):
        several = [_predicate(item) for item in shape]
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(several)
            and all(fits(item) for fits, item in zip(several, value, strict=True))
        )
    named = [(key.removesuffix("?"), key.endswith("?"), _predicate(inner)) for key, inner in shape.items()]
    return lambda value: (
        isinstance(value, dict) and all(fits(value[key]) if key in value else optional for key, optional, fits in named)
    )


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    """First misfit of a value."""
    if isinstance(shape, Or):
        return None if value is None else misfit(value, shape.shape, where)
    if isinstance(shape, str):
        return None if KINDS[shape](value) else _wrong(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return _wrong(value, "a list" if len(shape) == 1 else f"a list of {len(shape)}", where)
        shapes = shape * len(value) if len(shape) == 1 else shape
        return _first(where, zip(range(len(value)), value, shapes, strict=True))
    if not isinstance(value, dict):
        return _wrong(value, "an object", where)
    if isinstance(shape, Map):
        return _first(where, ((key, item, shape.shape) for key, item in value.items()))
    for key in shape:
        if not key.endswith("?") and key not in value:
            return f"{_at(where, key)} is missing"
    pairs = ((key.removesuffix("?"), inner) for key, inner in shape.items())
    return _first(where, ((key, value[key], inner) for key, inner in pairs if key in value))


def _first(where: str, parts: Iterable[tuple[Any, Any, Any]]) -> str | None:
    """First misfit among (key, value, shape)."""
    misfits = (misfit(value, shape, _at(where, key)) for key, value, shape in parts)
    return next((text for text in misfits if text is not None), None)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, (float, int)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _wrong(value: Any, wanted: str, where: str) -> str:
    if (wanted == SHARE and _finite(value)) or (isinstance(value, float) and not math.isfinite(value)):
        given = str(value)
    else:
        kinds = {"str": "text", "dict": "an object", "list": "a list", "NoneType": "null", "bool": "true or false"}
        given = kinds.get(type(value).__name__, "a number")
    return f"{where or 'the whole'} is {given}, {wanted} expected"


KINDS: dict[str, Fits] = {
    NUMBER: _finite,
    SHARE: lambda value: _finite(value) and 0 <= value <= 1,
    TEXT: lambda value: isinstance(value, str),
    WHOLE: lambda value: isinstance(value, int) and not isinstance(value, bool),
    FLAG: lambda value: isinstance(value, bool),
    ANY: lambda value: True,
}
_predicates: dict[int, tuple[Any, Fits]] = {}
"""Shape and its predicate by the shape's id, which stays unique while the shape is kept here."""
