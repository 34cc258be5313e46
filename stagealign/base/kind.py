"""A kind of artifact: one row with its builder and everything that planning must know about it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A builder and the facts that planning needs. `name` and `version` are identity; the rest moves no fingerprint."""

    name: str
    """Part of every fingerprint, so it never changes, wherever the code moves."""
    place: str = field(default="", compare=False)
    """`module:function`, called with a `Work`, returns facts; imported only to build. Empty: `name` is the place."""
    version: int = 1
    """Raised by hand when the output changes meaning."""
    price: str = field(default="", compare=False)
    """Key of `plan.price.FORMULAS`; `free` for text and counts. A kind of a plan without one is an error."""
    light: float = field(default=0.0, compare=False)
    """Seconds on one laptop core beyond the work that `price` counts; measured in the lab, nothing on a GPU."""
    trains: bool = field(default=False, compare=False)
    """Whether `--devices` spreads it over processes."""
    fetches: str = field(default="", compare=False)
    """Parameter that names weights on a hub, where building it downloads them."""

    @property
    def function(self) -> str:
        """`module:function` of the code."""
        return self.place or self.name


def code_at(place: str) -> Callable[..., Any]:
    """The function at `module:function`, imported now."""
    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
