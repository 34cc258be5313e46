"""One finding of `stagealign doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Outcome of one check."""

    area: str
    """`store`, `assets`, `kept`, `results` or `environment`."""
    state: Literal["ok", "note", "wrong"]
    what: str
    do: str = ""
    """What to do about it; empty if nothing."""
