"""Cells by name and by `-k` expression."""

import re
from collections.abc import Callable, Iterable, Iterator

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.grid.cell import Cell
from stagealign.grid.methods import METHODS
from stagealign.grid.models import MODELS
from stagealign.grid.registry import cells
from stagealign.grid.sources import SCHEDULES


def select(scale_key: str, expression: str = "") -> list[Cell]:
    """Cells of one scale that a `-k` expression matches, as pytest would match them; extra ones only where named.

    Raises StagealignError where the expression is malformed or matches nothing.
    """
    every = cells(scale_key, extras=True)
    matches = matcher(expression)
    chosen = [one for one in every if asked_for(one, matches, one.keywords)]
    if not chosen:
        words = [word for word in re.findall(r"[\w.+-]+", expression) if word not in ("and", "or", "not")]
        names = [*MODELS, *METHODS[scale_key], *SCHEDULES, *(one.id for one in every)]
        unknown = next((word for word in words if not any(word.lower() in name for name in names)), expression)
        raise UnknownName(f"-k {expression!r} matches no cell at scale {scale_key}; name", unknown, names)
    return chosen


def asked_for(one: Cell, matches: Callable[[Iterable[str]], bool], names: Iterable[str]) -> bool:
    """Whether an expression matches a cell's names; for an extra cell, only by the name of what makes it extra.

    So `-k zephyr` is the row of the grid, and `-k "zephyr and 1llama"` or `-k llama` also finds `zephyr-dpo-1llama`,
    `-k dpo_beta0.1` that variant, `-k "qwen and slichf"` the cells that are beyond the paper.
    """
    names = list(names)
    if not matches(names):
        return False
    without = ([_without(name, one, word, instead) for name in names] for word, instead in one.extra_words)
    return not any(matches(others) for others in without)


def _without(name: str, one: Cell, word: str, instead: str) -> str:
    """A name of the cell as it would be without what makes the cell extra: `word` in its id reads `instead`."""
    return name.replace(one.id, "-".join(part.replace(word, instead) for part in one.id.split("-")))


def matcher(expression: str) -> Callable[[Iterable[str]], bool]:
    """Predicate over a cell's names: `and`, `or`, `not`, parentheses, and words that match as substrings."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    position = 0

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1] if position <= len(tokens) else ""

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def either() -> Callable[[str], bool]:
        left = both()
        while peek() == "or":
            take()
            left = _combine(any, left, both())
        return left

    def both() -> Callable[[str], bool]:
        left = single()
        while peek() == "and":
            take()
            left = _combine(all, left, single())
        return left

    def single() -> Callable[[str], bool]:
        word = take()
        if word == "not":
            inner = single()
            return lambda names: not inner(names)
        if word == "(":
            inner = either()
            if take() != ")":
                raise StagealignError(f"-k {expression!r}: a closing parenthesis is missing")
            return inner
        if word in ("", ")", "and", "or"):
            raise StagealignError(f"-k {expression!r}: a name is missing before {word or 'the end'!r}")
        if not re.fullmatch(r"[\w:+.\[\]\\/-]+", word):
            raise StagealignError(
                f"-k {expression!r}: {word!r} is no name; write words, `and`, `or`, `not` and parentheses"
            )
        return lambda names: word.lower() in names

    if not tokens:
        return lambda names: True
    matches = either()
    if position < len(tokens):
        raise StagealignError(f"-k {expression!r}: {peek()!r} follows where `and`, `or` or the end was expected")
    return lambda names: matches(" ".join(names).lower())


def _combine(quantifier: Callable[[Iterator[bool]], bool], *parts: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda names: quantifier(part(names) for part in parts)
