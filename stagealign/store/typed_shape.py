"""Shapes for `base.shapes.misfit`, derived from the types of JSON values."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from stagealign.base.shapes import ANY, FLAG, NUMBER, SHARE, TEXT, WHOLE, Map, Or

PLAIN = {float: NUMBER, int: WHOLE, str: TEXT, bool: FLAG, object: ANY, Any: ANY}
UNCHECKED = "unchecked"
"""Mark of a field that readers do not rely on: it is left out of the shape."""


@dataclass(frozen=True)
class Length:
    """Mark of a list with exactly `count` entries, at least 2."""

    count: int


def shape_of(kind: Any) -> Any:
    """Shape of a type made of TypedDict, list, dict, Literal, `X | None` and plain types.

    `Annotated[float, SHARE]` is a share, `Annotated[list[X], Length(n)]` a list of n entries. A Literal is any text.
    Raises TypeError for any other type.
    """
    if is_typeddict(kind):
        return _object_shape(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _marked_shape(inner[0], inner[1:])
    if origin in (Union, UnionType) and len(inner) == 2 and NoneType in inner:
        return Or(shape_of(next(member for member in inner if member is not NoneType)))
    if origin is list:
        return [shape_of(inner[0])]
    if origin is dict and inner[0] is str:
        return Map(shape_of(inner[1]))
    if origin is Literal and all(isinstance(value, str) for value in inner):
        return TEXT
    if origin is None and kind in PLAIN:
        return PLAIN[kind]
    raise TypeError(f"{kind!r}: no JSON shape; use a TypedDict, list, dict, Literal, `X | None` or a plain type")


def _marked_shape(kind: Any, marks: tuple[Any, ...]) -> Any:
    """Shape of an annotated type."""
    if SHARE in marks:
        return SHARE
    lengths = [mark.count for mark in marks if isinstance(mark, Length)]
    return shape_of(kind) * lengths[0] if lengths else shape_of(kind)


def _object_shape(kind: Any) -> dict[str, Any]:
    """Key -> shape in the order of the fields; `?` ends the key of a field that may be absent."""
    fields = {}
    for name, field in get_type_hints(kind, include_extras=True).items():
        while get_origin(field) in (NotRequired, Required):
            field = get_args(field)[0]
        if UNCHECKED not in getattr(field, "__metadata__", ()):
            fields[name if name in kind.__required_keys__ else f"{name}?"] = shape_of(field)
    return fields
