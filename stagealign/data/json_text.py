"""Reader of JSON files: a list of objects, concatenated objects, and the wrappers that other programs write."""

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from stagealign.base.errors import BadData
from stagealign.base.words import listed, why
from stagealign.data.formats import CHUNK, LONGEST, DataRow, Numbered, json_object, opened_bytes

WRAPPER = re.compile(r"(?:train|test|valid|validation|dev|eval)(?:[_-]\w+)?|data|rows|examples|instances|records|items")
"""Keys under which a file has its rows: a split, or a word for rows."""
WRAPPED = re.compile(r"\{\s*\"([^\"\\]{1,60})\"\s*:\s*\[\s*\{")


def json_rows(path: Path, source: str, split: str | None = None) -> Numbered:
    """Yields the objects of a JSON list, or of concatenated JSON, numbered from 1, while it reads. Raises BadData.

    One object that holds the rows is read as well: lists under `data` or the names of splits, of which `split` names
    one; and the orientations of pandas' `to_json`, which are read whole.
    """
    with opened_bytes(path, source) as file:
        text = JsonText(file, source)
        first = text.skip()
        if not first:
            return
        if first not in "[{":
            raise BadData(f"{source}: starts with {first!r}; a list of objects is expected")
        wrapped = WRAPPED.match(text.held, text.at) if first == "{" else None
        if wrapped and WRAPPER.fullmatch(wrapped[1]):
            yield from _wrapped(text, split)
        elif first == "{":
            yield from _objects(text, split)
        elif split is not None:
            raise BadData(no_split(source, split))
        else:
            yield from _listed(text)
            if text.skip():
                raise BadData(f"{source}: more text after the end of the list; one list of objects is expected")


def no_split(source: str, split: str) -> str:
    """Error text for a split of a file without splits."""
    return f"{source}: a file has no split {split!r}; splits are for hub data sets, leave it out"


def several(source: str, splits: Sequence[str]) -> str:
    """Error text for a choice of splits."""
    return f"{source}: splits {listed(splits)} found; name one of them, such as --split {splits[0]}"


def _listed(text: "JsonText") -> Numbered:
    """Yields the objects of the list that starts at `at`."""
    text.sign("[", "the start")
    number = 0
    while text.skip() != "]":
        if number:
            text.sign(",]", f"row {number}")
            text.skip()
        number += 1
        yield number, json_object(text.value(number), f"{text.source}, row {number}")
    text.sign("]", f"row {number}")


def _wrapped(text: "JsonText", split: str | None) -> Numbered:
    """Yields the objects of one list of an object that starts at `at`."""
    text.sign("{", "the start")
    read: list[str] = []
    while True:
        text.skip()
        key = text.passed()
        text.sign(":", f"{key!r}")
        if text.skip() == "[" and isinstance(key, str) and WRAPPER.fullmatch(key):
            chosen = split in (None, key)
            if chosen:
                read.append(key)
                if len(read) > 1:
                    raise BadData(
                        f"{text.source}: splits {listed(read)} found; name one of them, such as --split {read[0]}"
                    )
            for numbered in _listed(text):
                if chosen:
                    yield numbered
        else:
            text.passed()
        if text.sign(",}", f"{key!r}") == "}":
            break
    if not read:
        raise BadData(f"{text.source}: no split {split!r} found; name another")


def _objects(text: "JsonText", split: str | None) -> Numbered:
    """Yields concatenated objects, or the rows that a single object holds."""
    first = json_object(text.value(1), f"{text.source}, row 1")
    if not text.skip():
        rows = unwrapped(first, text.source, split)
        if rows is None and split is not None:
            raise BadData(no_split(text.source, split))
        yield from enumerate([first] if rows is None else rows, 1)
        return
    yield 1, first
    number = 1
    while text.skip():
        number += 1
        yield number, json_object(text.value(number), f"{text.source}, row {number}")


def unwrapped(value: DataRow, source: str, split: str | None = None) -> list[DataRow] | None:
    """The rows that one object holds; None if the object is a row itself. Raises BadData if it holds several splits.

    Source: pandas 3 `DataFrame.to_json` (orient columns, index, split and table) and `DataFrame.to_dict("list")`.
    """
    wrapped = [key for key, item in value.items() if WRAPPER.fullmatch(key) and _rows_or_columns(item)]
    if wrapped and {"columns", "data"} - value.keys():
        if split is None and len(wrapped) > 1:
            raise BadData(several(source, wrapped))
        if split is not None and split not in wrapped:
            raise BadData(f"{source}: no split {split!r} found; one of {listed(wrapped)}")
        inner = value[split or wrapped[0]]
        return inner if isinstance(inner, list) else unwrapped(inner, source)
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    items = list(value.values())
    if items and all(isinstance(item, dict) and item for item in items):
        if all(key.isdigit() for item in items for key in item):
            numbers = dict.fromkeys(key for item in items for key in item)
            return [{name: value[name].get(number) for name in value} for number in numbers]
        return items if all(key.isdigit() for key in value) else None
    lists = len(items) > 1 and all(isinstance(item, list) for item in items)
    if lists and not any(map(_turns, items)) and len({len(item) for item in items}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*items, strict=True)]
    return None


def _rows_or_columns(value: Any) -> bool:
    """True for a list of objects, and for an object of columns."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(item, list | dict) for item in value.values())
    return isinstance(value, list) and all(isinstance(item, dict) for item in value) and not _turns(value)


def _turns(value: list[Any]) -> bool:
    """True for a list of messages."""
    return bool(value) and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in value)


class JsonText:
    """A JSON text that is read piece by piece; `at` is the index of the next character in `held`."""

    def __init__(self, file: IO[bytes], source: str):
        self.source, self.held, self.at = source, "", 0
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False
        self._decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Reads more text; False at the end. The buffer doubles each time, so a long value is parsed few times."""
        if self._ended:
            return False
        self.held, self.at = self.held[self.at :], 0
        raw = self._file.read(max(CHUNK, len(self.held)))
        self._ended = not raw
        try:
            self.held += self._decode.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise BadData(f"{self.source}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        return True

    def skip(self) -> str:
        """The next character that is not white space; the empty string at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in " \t\n\r":
                self.at += 1
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def sign(self, signs: str, after: str) -> str:
        """Takes the next character, which is one of `signs`. Raises BadData."""
        found = self.skip()
        if not found:
            raise BadData(f"{self.source}: ends early, after {after}; write or copy it again")
        if found not in signs:
            expected = " or ".join(map(repr, signs))
            raise BadData(f"{self.source}, after {after}: {found!r} found; {expected} is expected")
        self.at += 1
        return found

    def passed(self) -> Any:
        """Takes any JSON value that is not a row. Raises BadData."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self.held, self.at)
                if end < len(self.held) or not self.more():  # a number could continue in the next piece
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if len(self.held) > LONGEST or not self.more():
                    raise BadData(f"{self.source}: not JSON ({why(error)}); a list of objects is expected") from error

    def value(self, number: int) -> Any:
        """Takes the JSON object that starts at `at`. Raises BadData."""
        where = f"{self.source}, row {number}"
        if self.at < len(self.held) and self.held[self.at] != "{":  # a number could continue in the next piece
            raise BadData(f"{where}: starts with {self.held[self.at]!r}; an object is expected")
        while True:
            try:
                value, self.at = self._decoder.raw_decode(self.held, self.at)
                return value
            except json.JSONDecodeError as error:
                whole = len(self.held) - error.pos > 16 and not error.msg.startswith("Unterminated")
                if len(self.held) > LONGEST:
                    raise BadData(f"{where}: longer than {LONGEST >> 20} MiB; a list of objects is expected") from error
                if whole or not self.more():
                    raise BadData(f"{where}: not JSON ({why(error)}); a list of objects is expected") from error
            except (ValueError, RecursionError) as error:
                raise BadData(f"{where}: not JSON ({why(error)}); a list of objects is expected") from error
