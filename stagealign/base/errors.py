"""Errors a user can meet: what was given, what was found, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

from stagealign.base.secrets import without_secrets


class StagealignError(Exception):
    """Base of all errors caused by input or machine rather than by a bug; the CLI prints them without a traceback."""

    def __str__(self) -> str:
        """The message, with secrets of the environment hidden."""
        return without_secrets(super().__str__())


class UnknownName(StagealignError):
    """A name that is in none of the tables: of a cell, model, method, schedule, scale, executor or GPU, say."""

    def __init__(self, kind: str, given: str, known: Iterable[str], listed: bool = True):
        """`listed`: whether `stagealign list` shows what is known; the message names all of it otherwise."""
        known = list(known)
        near = get_close_matches(given, known, n=3, cutoff=0.4) or known[:6]
        choices = (
            f"nearest: {', '.join(near)}. `stagealign list` shows all." if listed else f"one of {', '.join(known)}"
        )
        super().__init__(f"{kind} {given!r}: unknown; {choices}")
        self.asked = (kind, given, known, listed)

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, str, list[str], bool]]:
        """Pickles the arguments, so that a worker process can hand over the error."""
        return UnknownName, self.asked


class BadSpec(StagealignError):
    """A registry entry that would give meaningless numbers."""


class BadData(StagealignError):
    """A data file whose rows cannot be used as they stand."""


class BadAsset(StagealignError):
    """A downloaded file that differs from the one in the registry."""


class StoreDrift(StagealignError):
    """An artifact at this path was built from another spec."""


class Damaged(StagealignError):
    """A file that changed since it was written; the message holds the command that rebuilds it."""


class BadNumbers(StagealignError):
    """A number is NaN or infinite; the run stops, as later numbers would be wrong."""


class CannotRun(StagealignError):
    """This machine cannot do what was asked; lists everything that is missing."""
