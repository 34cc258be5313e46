"""A kind of artifact: one row with its builder and everything that planning must know about it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A builder and the facts that planning needs. Only `name` and `version` are identity."""

    name: str
    """Part of every fingerprint: it never changes, even if the code moves."""
    place: str = field(default="", compare=False)
    """`module:function` that takes a `Work` and returns facts; imported only to build. Empty: the same as `name`."""
    version: int = 1
    """Raised by hand when the output changes meaning."""
    price: str = field(default="", compare=False)
    """Key of `plan.price.PRICES`; `free` for text and counts. Planning a kind without a price is an error."""
    light: float = field(default=0.0, compare=False)
    """Seconds on one laptop core beyond the work that `price` counts; measured in the lab. Ignored on a GPU."""
    trains: bool = field(default=False, compare=False)
    """Whether `--devices` spreads it over processes."""
    fetches: str = field(default="", compare=False)
    """Parameter that names the weights that the builder downloads from a hub; empty if it downloads none."""

    @property
    def function(self) -> str:
        """`module:function` of the code."""
        return self.place or self.name


def code_at(place: str) -> Callable[..., Any]:
    """The function at `module:function`, imported now."""
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
