"""Cells by name and by `-k` expression."""

import re
from collections.abc import Callable, Iterable, Iterator

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.grid.cell import Cell
from stagealign.grid.methods import METHODS
from stagealign.grid.models import MODELS
from stagealign.grid.registry import cells
from stagealign.grid.sources import SCHEDULES

Predicate = Callable[[str], bool]
"""Whether a part of an expression matches a cell's names, joined and in lower case."""


def select(scale_key: str, expression: str = "") -> list[Cell]:
    """Cells of one scale that a `-k` expression matches, by pytest's rules; extra cells must be named.

    Raises StagealignError if the expression is malformed or matches nothing.
    """
    every = cells(scale_key, extras=True)
    matches = matcher(expression)
    chosen = [cell for cell in every if asked_for(cell, matches, cell.keywords)]
    if not chosen:
        words = [word for word in re.findall(r"[\w.+-]+", expression) if word not in ("and", "or", "not")]
        names = [*MODELS, *METHODS[scale_key], *SCHEDULES, *(cell.id for cell in every)]
        unknown = next((word for word in words if not any(word.lower() in name for name in names)), expression)
        raise UnknownName(f"-k {expression!r} matches no cell at scale {scale_key}; name", unknown, names)
    return chosen


def asked_for(cell: Cell, matches: Callable[[Iterable[str]], bool], names: Iterable[str]) -> bool:
    """Whether an expression matches a cell's names; an extra cell must be named by what makes it extra.

    So `-k zephyr` is the row of the grid, and `-k "zephyr and 1llama"` or `-k llama` also finds `zephyr-dpo-1llama`,
    `-k dpo_beta0.1` that variant, `-k "qwen and slichf"` the cells that are beyond the paper.
    """
    names = list(names)
    if not matches(names):
        return False
    without = ([_without(name, cell, word, instead) for name in names] for word, instead in cell.extra_words)
    return not any(matches(others) for others in without)


def _without(name: str, cell: Cell, word: str, instead: str) -> str:
    """A name of the cell with `instead` for `word`, in its id and in its source, which may be named after the model."""
    source = cell.source_keyword
    name = name.replace(cell.id, "-".join(part.replace(word, instead) for part in cell.id.split("-")))
    return name.replace(source, source.replace(word, instead))


def matcher(expression: str) -> Callable[[Iterable[str]], bool]:
    """Predicate over a cell's names: `and`, `or`, `not`, parentheses, and words that match as substrings.

    An empty expression matches all. Raises StagealignError for a malformed one.
    """
    parser = _Parser(expression)
    if parser.ended:
        return lambda names: True
    matches = parser.whole()
    return lambda names: matches(" ".join(names).lower())


class _Parser:
    """Reads one expression from left to right; each method reads a part and returns its predicate."""

    def __init__(self, expression: str):
        self.expression = expression
        self._tokens = re.findall(r"[()]|[^\s()]+", expression)
        self._position = 0

    @property
    def ended(self) -> bool:
        return self._position >= len(self._tokens)

    def whole(self) -> Predicate:
        """The whole expression. Raises StagealignError if more follows."""
        matches = self._either()
        if not self.ended:
            raise self._error(f"{self._peek()!r} follows where `and`, `or` or the end was expected")
        return matches

    def _either(self) -> Predicate:
        left = self._both()
        while self._peek() == "or":
            self._take()
            left = _combine(any, left, self._both())
        return left

    def _both(self) -> Predicate:
        left = self._single()
        while self._peek() == "and":
            self._take()
            left = _combine(all, left, self._single())
        return left

    def _single(self) -> Predicate:
        word = self._take()
        if word == "not":
            inner = self._single()
            return lambda names: not inner(names)
        if word == "(":
            inner = self._either()
            if self._take() != ")":
                raise self._error("a closing parenthesis is missing")
            return inner
        if word in ("", ")", "and", "or"):
            raise self._error(f"a name is missing before {word or 'the end'!r}")
        if not re.fullmatch(r"[\w:+.\[\]\\/-]+", word):
            raise self._error(f"{word!r} is no name; write words, `and`, `or`, `not` and parentheses")
        return lambda names: word.lower() in names

    def _peek(self) -> str:
        return "" if self.ended else self._tokens[self._position]

    def _take(self) -> str:
        token = self._peek()
        self._position += 1
        return token

    def _error(self, what: str) -> StagealignError:
        return StagealignError(f"-k {self.expression!r}: {what}")


def _combine(quantifier: Callable[[Iterator[bool]], bool], *parts: Predicate) -> Predicate:
    return lambda names: quantifier(part(names) for part in parts)
