"""Words for values in messages."""

from collections.abc import Iterable
from typing import Any


def why(error: BaseException) -> str:
    """First line of an error, at most 200 characters."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: Any) -> str:
    """Type of a value, in words."""
    names = {"bool": "a truth value", "int": "a number", "float": "a number", "dict": "an object", "list": "a list"}
    return names.get(type(value).__name__, type(value).__name__)


def listed(names: Iterable[Any]) -> str:
    """Names on one line of a message, at most 12; a name with control characters is escaped."""
    names = [name if name.isprintable() else repr(name) for name in map(str, names)]
    return (", ".join(name[:40] for name in names[:12]) + ", ..." * (len(names) > 12)) or "none"
