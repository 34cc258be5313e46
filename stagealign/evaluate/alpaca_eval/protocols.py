"""What an evaluation talks to: the judge that it asks, and the listener that it tells."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from stagealign.grid.prices import TokenPrice
from stagealign.store.artifact import Identity

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.asking import Keep
    from stagealign.evaluate.alpaca_eval.official import Official, Question


class EvaluationListener(Protocol):
    """Hears how an evaluation goes on."""

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Called before anything is asked, with what that will take."""

    def answered(self, done: int, total: int) -> None:
        """Called after each answer."""


class Silent:
    """Ignores it."""

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Does nothing."""

    def answered(self, done: int, total: int) -> None:
        """Does nothing."""


class Judge(Protocol):
    """Anything that answers the official question about prompts."""

    official: "Official"
    expected: str | None
    """Version that every answer must be of; None if the first answer tells."""

    @property
    def identity(self) -> Identity:
        """Values that an answer is kept under."""

    @property
    def named(self) -> str | None:
        """Version by the judge's own word; None if it is not known yet."""

    @property
    def price(self) -> TokenPrice | None:
        """None if asking costs nothing, or the price is not known."""

    @property
    def spent(self) -> float | None:
        """USD of this run."""

    def estimate(self, questions: Sequence["Question"]) -> tuple[int, float | None]:
        """Tokens and USD that asking will take, about."""

    def ask(self, questions: Sequence["Question"], keep: "Keep") -> str | None:
        """Passes each answer to `keep`. Returns the reason why not all was asked; None if all was."""

    def close(self) -> None:
        """Ends the connection, if there is one."""
