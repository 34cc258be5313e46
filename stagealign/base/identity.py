"""Identity of frozen values, and named streams of chance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any


def remarks_field() -> Any:
    """Field that maps names of fields to the recipes of their values; never identity."""
    return field(default_factory=dict, compare=False, repr=False, metadata={"identity": False})


def later_field(default: Any) -> Any:
    """Field added to a class that has results. Identity only if it differs from its default: old results stay valid."""
    return field(default=default, metadata={"identity": "where it differs"})


def plain(value: Any) -> Any:
    """`value` as JSON-ready identity: dataclasses become objects, without remarks and without later fields at default.

    Raises TypeError for anything without a stable form; nothing is `str()`-ed into a fingerprint.
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: (getattr(value, f.name), f) for f in fields(value)}
        return {name: plain(item) for name, (item, f) in named.items() if _determines(item, f)}
    if isinstance(value, Mapping):
        return {_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise TypeError(f"{value!r}: not a finite number, so it has no stable form")
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}): no stable form; use numbers, text, lists or a frozen spec")


def _determines(value: Any, f: "Field[Any]") -> bool:
    """Whether a field with this value belongs to what determines content."""
    determines: bool | str = f.metadata.get("identity", True)
    return value != f.default if isinstance(determines, str) else determines


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r}: only text may be a key of an identity")
    return key


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of `value`'s canonical JSON."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stream(seed: int, *names: str | int) -> int:
    """Seed in [0, 2**63) of one named stream of chance; streams of different names are independent."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
