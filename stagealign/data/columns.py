"""Which layout a file has, by its columns; nothing that may hold the prompt is passed over."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.words import listed
from stagealign.data import picking
from stagealign.data.context import is_context, with_context
from stagealign.data.formats import DataRow
from stagealign.data.layouts import CHOSEN, LAYOUTS, PROMPTS, FileLayout
from stagealign.data.sides import Sides
from stagealign.data.splitting import Split, repeated, split
from stagealign.data.texts import Unusable, blank, unpacked

FIRST = 64
"""Number of rows whose columns and values decide the layout."""
PROMPT_LIKE = re.compile(
    r"(?:(?:user|input|initial|full|raw|original)_)?"
    r"(?:prompts?|questions?|instructions?|query|queries|inputs?|conversations?|contexts?|messages?|dialogs?|dialogues?"
    r"|problem|request|goal|post|passages?|documents?|article|background|knowledge|chat)(?:_(?:text|str|en))?"
)
ABOUT = re.compile(
    r"(?:.*_)?(?:ids?|idx|uuid|index|hash|source|datasets?|subset|split|category|type|domain|topic|labels?|scores?|ratings?"
    r"|models?|lang|language|meta|metadata|timestamp|date|tokens|rank|margin|license|url|status|turns)(?:_.*)?"
    r"|(?:chosen|rejected|num|is|total)_.*"
)
"""Names of columns about a row, which hold no part of its prompt."""
NAMED = ("prompt", "chosen", "rejected", "system", "history")
"""What `--columns` can name."""
KNOWN = frozenset(column for layout in LAYOUTS for column in layout.columns)
EXAMPLE = "--columns prompt=question,chosen=a,rejected=b"
NOT_SAID = ("role", "from", "name", "type", "id", "model", "weight")
"""Keys of a message that are not its text."""


def canonical(column: str) -> str:
    """A column's name in lower case with underscores, as `LAYOUTS` has it."""
    return re.sub(r"[\s\-]+", "_", column.strip()).lower()


@dataclass(frozen=True)
class Reading:
    """How the rows of one file are read."""

    layout: FileLayout
    named: Mapping[str, str]
    """Column of the file, or path in it (`input.messages`), by the name that is used for it."""
    context: tuple[str, ...]
    """Columns of system texts, earlier turns, tools and media."""
    others: tuple[str, ...]
    """Columns that might be the prompt; each row must have them empty, or repeat in them what the pair says."""
    unused: tuple[str, ...]
    """Columns that are not read and not known to be about the row alone, such as ids and scores."""
    seen: frozenset[str]
    """Columns of the first rows."""
    repeats: bool
    """True if the answers of the first rows all start with their prompt."""

    @property
    def wanted(self) -> frozenset[str]:
        """Columns of the file whose values are needed."""
        names = {*self.layout.columns, *self.context, *self.others}
        return frozenset(part for name in names for part in _with_start(self.named.get(name, name)))

    def sides(self, row: DataRow) -> Sides:
        """The prompt and the two answers of a row. Raises Unusable."""
        if not row.keys() <= self.seen:
            for column in row.keys() - self.seen:
                name = canonical(column)
                if not blank(row[column]) and (PROMPT_LIKE.fullmatch(name) or is_context(name)):
                    raise Unusable(f"`{name}` is in some rows only, not in the first {FIRST}")
        row = renamed(row, self.named)
        sides = self.layout.read(row)
        for column in self.others:
            if not said_in(row.get(column), sides):
                raise Unusable(f"`{column}` says more than the prompt in `{self.layout.needs[0]}`")
        return sides

    def split(self, sides: Sides, row: DataRow, changed: list[str]) -> Split:
        """Prompt and completions in the order of `sides`. Raises Unusable."""
        found = split(sides, changed, self.repeats)
        if not self.context:
            return found
        return found._replace(prompt=with_context(found.prompt, renamed(row, self.named), self.context))


def _with_start(column: str) -> tuple[str, str]:
    """A column of the file, and the one in which it lies if it is a path."""
    return column, column.partition(".")[0]


def renamed(row: DataRow, named: Mapping[str, str]) -> DataRow:
    """The row with its columns under the names that `LAYOUTS` uses."""
    if not named:
        return row
    taken = set(named.values())
    values = {column: value for column, value in row.items() if column not in taken and column not in named}
    for name, column in named.items():
        found: Any = row.get(column, Unusable)
        if found is Unusable and "." in column:
            found = row
            for part in column.split("."):
                found = unpacked(found)
                found = found.get(part, Unusable) if isinstance(found, Mapping) else Unusable
        if found is not Unusable:
            values[name] = found
    return values


def said_in(value: Any, sides: Sides) -> bool:
    """True if a value is empty, or all that it says stands in the prompt or in the answers."""
    if blank(value) or value in (sides.first, sides.prompt, sides.second):
        return True
    said = "".join(_words(sides.prompt) + _words(sides.first) + _words(sides.second))
    return all(words in said for words in _words(value))


def _words(value: Any) -> list[str]:
    """Texts in a value, without white space."""
    value = unpacked(value)
    if isinstance(value, Mapping):
        return [words for key, item in value.items() if key not in NOT_SAID for words in _words(item)]
    if isinstance(value, list | tuple):
        return [words for item in value for words in _words(item)]
    return ["".join(value.split())] if isinstance(value, str) else []


def parsed(text: str | None) -> Mapping[str, str]:
    """Columns by role of `prompt=question,chosen=a,rejected=b`. Raises BadData."""
    named: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if name not in NAMED or not equals or (not column and name != "prompt") or name in named:
            raise BadData(
                f"--columns {text!r}: {part.strip()!r} found; give each of {', '.join(NAMED)} once at most, as in "
                f"{EXAMPLE}; prompt= says that there is no column of the prompt"
            )
        named[name] = column
    return named


def fit(source: str, rows: Sequence[DataRow], given: Mapping[str, str]) -> Reading:
    """How to read a file, by its first rows and the columns that the user named. Raises BadData if no layout fits."""
    if not rows:
        raise BadData(picking.empty(source))
    seen = frozenset(column for row in rows for column in row)
    named = _named(source, seen, given)
    raw, rows = rows, [renamed(row, named) for row in rows]
    names = {column for row in rows for column in row}
    asking = {name for name in names if _prompt_like(name) and name != "prompt"}
    empty = {name for name in asking if all(blank(row.get(name)) for row in rows)}
    present = names - empty
    if "prompt" in given:  # the user's word: other columns are not the prompt
        present -= asking
        present -= {"prompt"} if not given["prompt"] else set()
    layout = _layout(source, rows, present, list(dict.fromkeys(column for row in raw for column in row)))
    others = sorted(name for name in names & (present | empty) if _prompt_like(name) and name not in layout.columns)
    others = [name for name in others if "prompt" not in given]
    context = tuple(sorted(name for name in names if is_context(name) and name not in layout.columns))
    unused = names - layout.columns - set(context) - set(others)
    if layout.needs == CHOSEN and "prompt" not in given:
        _no_prose(source, rows, unused)
    pairs = list(_sides(layout, rows))
    doubles = {name for name in others if pairs and all(row.get(name) == one.first for row, one in pairs)}
    return Reading(
        layout,
        named,
        context,
        tuple(name for name in others if name not in doubles),
        tuple(sorted(name for name in unused if not ABOUT.fullmatch(name))),
        seen,
        len(pairs) > 1 and all(_repeats(one) for _, one in pairs),
    )


def _named(source: str, seen: frozenset[str], given: Mapping[str, str]) -> dict[str, str]:
    """Columns of the file by the name that is used for them, where it is another. Raises BadData."""
    named: dict[str, str] = {}
    for column in sorted(seen):
        name = canonical(column)
        if name != column and (name in KNOWN or _prompt_like(name) or is_context(name)):
            if name in named or name in seen:
                raise BadData(f"{source}: columns {listed([column, named.get(name, name)])} found; remove one of them")
            named[name] = column
    for name, column in given.items():
        if column and column not in seen and column.partition(".")[0] not in seen:
            raise BadData(f"{source}: --columns {name}={column}: no such column; found: {listed(sorted(seen))}")
        if column and column != name:
            named = {other: taken for other, taken in named.items() if taken != column} | {name: column}
    return named


def _prompt_like(name: str) -> bool:
    return PROMPT_LIKE.fullmatch(name) is not None


def _sides(layout: FileLayout, rows: Sequence[DataRow]) -> Iterator[tuple[DataRow, Sides]]:
    """Yields the usable rows with what the layout reads from them."""
    for row in rows:
        try:
            yield row, layout.read(row)
        except Unusable:
            continue


def _repeats(sides: Sides) -> bool:
    texts = (sides.prompt, sides.first, sides.second)
    return all(isinstance(text, str) for text in texts) and repeated(*texts, short=True) is not None


def layouts_of(present: set[str]) -> list[FileLayout]:
    """Layouts whose columns are all present."""
    return [one for one in LAYOUTS if present.issuperset(one.needs) and present.isdisjoint(one.without)]


def _layout(source: str, rows: Sequence[DataRow], present: set[str], found: Sequence[str]) -> FileLayout:
    """The one layout that fits these columns. Raises BadData."""
    fits = layouts_of(present)
    if not fits:
        raise BadData(f"{source}: {_no_layout(present, found)}")
    sound: list[FileLayout] = []
    beside: list[str] = []
    for layout in fits:
        more = [name for name in sorted(present) if _prompt_like(name) and name not in layout.columns]
        pairs = list(_sides(layout, rows))
        more = [name for name in more if not all(said_in(row.get(name), one) for row, one in pairs)]
        beside += more
        if not more:
            sound.append(layout)
    if len(fits) == 1 and not sound:
        raise BadData(
            f"{source}: columns {listed([f'`{name}`' for name in beside])} may hold a part of the prompt beside "
            f"{fits[0]}; join them into one column, or name the prompt's: --columns prompt={beside[0]}"
        )
    if not sound or len({frozenset(one.needs) - frozenset(PROMPTS) for one in sound}) > 1:
        raise BadData(
            f"{source}: more than one layout fits, and none is guessed: {'; '.join(map(str, sound or fits))}; name the "
            f"columns: {EXAMPLE}"
        )
    return sound[0]


def _no_layout(present: set[str], found: Sequence[str]) -> str:
    """Error text for columns of no layout."""
    missing = [name for name in CHOSEN if name not in present]
    if not missing:
        asked = [f"`{name}`" for name in sorted(present) if _prompt_like(name)]
        first = f"columns {listed(asked)} beside `chosen` and `rejected`"
    else:
        first = f"column {missing[0]!r} missing"
    nearest = sorted(LAYOUTS, key=lambda one: len(set(one.needs) - present) - len(set(one.needs) & present))
    known = "; ".join(dict.fromkeys(map(str, nearest)))
    return f"{first}; found: {listed(found)}; name the columns ({EXAMPLE}), or use a known layout: {known}"


def _no_prose(source: str, rows: Sequence[DataRow], unused: set[str]) -> None:
    """Raises BadData if a column that is not read has text of several words beside texts without a prompt's column."""
    if not any(isinstance(row.get("chosen"), str) and isinstance(unpacked(row["chosen"]), str) for row in rows):
        return
    prose = [
        name
        for name in sorted(unused)
        if not ABOUT.fullmatch(name)
        and any(" " in value.strip() for value in (row.get(name) for row in rows) if isinstance(value, str))
    ]
    if prose:
        raise BadData(
            f"{source}: no column of the prompt, but text in {listed([f'`{name}`' for name in prose])}; name the "
            f"prompt's column ({EXAMPLE}), or say that there is none: --columns prompt="
        )
