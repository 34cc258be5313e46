"""Protocols of an evaluation: the judge, and the listener for its progress."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from stagealign.grid.prices import TokenPrice
from stagealign.store.artifact import Identity

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.asking import Keep
    from stagealign.evaluate.alpaca_eval.official import Official, Question


class EvaluationListener(Protocol):
    """Receives the progress of an evaluation."""

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Called before the first question, with numbers of prompts and kept answers, estimated tokens and cost."""

    def answered(self, done: int, total: int) -> None:
        """Called after each answer."""


class Silent:
    """Listener that does nothing."""

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Does nothing."""

    def answered(self, done: int, total: int) -> None:
        """Does nothing."""


class Judge(Protocol):
    """Anything that answers the official question about prompts."""

    official: "Official"
    expected: str | None
    """Version that every answer must name; None if the first answer decides."""

    @property
    def identity(self) -> Identity:
        """Values that identify a kept answer."""

    @property
    def named(self) -> str | None:
        """Version that the judge gives itself; None if it is not known yet."""

    @property
    def price(self) -> TokenPrice | None:
        """Price of a token; None if asking is free or the price is unknown."""

    @property
    def spent(self) -> float | None:
        """USD of this run."""

    def estimate(self, questions: Sequence["Question"]) -> tuple[int, float | None]:
        """Estimated tokens and USD of these questions."""

    def ask(self, questions: Sequence["Question"], keep: "Keep") -> str | None:
        """Passes each answer to `keep`; returns the reason why some questions were not asked, or None."""

    def close(self) -> None:
        """Closes the connection, if there is one."""
