"""Whether a value read from a file has the shape that its readers rely on: the first place where it has not."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

NUMBER = "a finite number"
TEXT = "text"
WHOLE = "a whole number"
FLAG = "true or false"
ANY = "anything"


class Or:
    """A shape, or null."""

    def __init__(self, shape: Any):
        self.shape = shape


class Map:
    """An object of which every value has the same shape."""

    def __init__(self, shape: Any):
        self.shape = shape


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """`rounds.0.source is a list, text expected`, or None where the value fits.

    A shape is one of the words above, a list of one shape (a list of any length) or of several (of that length), a
    mapping (an object with these keys; one that ends in `?` may be absent), an `Or` or a `Map`.
    """
    if isinstance(shape, Or):
        return None if value is None else misfit(value, shape.shape, where)
    if isinstance(shape, str):
        return None if _is(value, shape) else _wrong(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return _wrong(value, "a list" if len(shape) == 1 else f"a list of {len(shape)}", where)
        shapes = shape * len(value) if len(shape) == 1 else shape
        return _first(where, zip(range(len(value)), value, shapes, strict=True))
    if not isinstance(value, Mapping):
        return _wrong(value, "an object", where)
    if isinstance(shape, Map):
        return _first(where, ((key, one, shape.shape) for key, one in value.items()))
    for key in shape:
        if not key.endswith("?") and key not in value:
            return f"{_at(where, key)} is missing"
    pairs = ((key.removesuffix("?"), one) for key, one in shape.items())
    return _first(where, ((key, value[key], one) for key, one in pairs if key in value))


def _first(where: str, parts: Iterable[tuple[Any, Any, Any]]) -> str | None:
    """The first misfit among (key, value, shape)."""
    found = (misfit(value, shape, _at(where, key)) for key, value, shape in parts)
    return next((text for text in found if text is not None), None)


def _is(value: Any, shape: str) -> bool:
    if shape == TEXT:
        return isinstance(value, str)
    if shape == FLAG:
        return isinstance(value, bool)
    if shape == WHOLE:
        return isinstance(value, int) and not isinstance(value, bool)
    if shape == NUMBER:
        try:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:
            return False
    assert shape == ANY, shape
    return True


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _wrong(value: Any, wanted: str, where: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        found = str(value)
    else:
        kinds = {"str": "text", "dict": "an object", "list": "a list", "NoneType": "null", "bool": "true or false"}
        found = kinds.get(type(value).__name__, "a number")
    return f"{where or 'the whole'} is {found}, {wanted} expected"
