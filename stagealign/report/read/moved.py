"""Whether a result is of another spec than the registry has now."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from stagealign.base.errors import UnknownName
from stagealign.base.identity import plain
from stagealign.grid import registry
from stagealign.store.result_types import Result


def spec_moved(result: Result) -> str:
    """First field that differs between a result's spec and the registry's, or empty; ignores fields that one lacks."""
    return next(_shared_differences(result.get("spec", {}), _spec(result["cell"], result["scale"])), "")


@lru_cache
def _spec(cell: str, scale: str) -> Any:
    """Spec of a cell in the registry; empty for an unknown cell."""
    try:
        return plain(registry.cell(cell, scale))
    except UnknownName:
        return {}


def _shared_differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() & new.keys()):
            yield from _shared_differences(old[key], new[key], f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} was {old!r}, is {new!r}"
