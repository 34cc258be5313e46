"""Text and conversations in the cells of a row; an unusable cell raises Unusable with a reason."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from stagealign.base.words import kind_of
from stagealign.data.formats import MISFIT, DataRow

Message: TypeAlias = Mapping[str, str]
Messages: TypeAlias = tuple[Message, ...]


class Unusable(Exception):
    """Reason why a row cannot be used. Rows are counted by it, so it contains no value of the row."""


def text_in(row: DataRow, column: str) -> str | Messages:
    """Text or conversation in a column. Raises Unusable."""
    value = given_in(row, column)
    if isinstance(value, str):
        return _encodable(value, column)
    if isinstance(value, list):
        if not value:
            raise Unusable(f"empty `{column}`")
        return tuple(_message(item, column) for item in value)
    raise Unusable(f"`{column}` is {kind_of(value)}, not text or a list of messages")


def given_in(row: DataRow, column: str) -> Any:
    """The value of a cell. Raises Unusable if there is none."""
    if column not in row:
        raise Unusable(f"no `{column}`")
    if row[column] is MISFIT:
        raise Unusable("not as many cells as the header")
    if row[column] is None:
        raise Unusable(f"`{column}` is null")
    return row[column]


def _encodable(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"`{column}` has half a character (a lone surrogate)") from error
    return text


def _message(item: Any, column: str) -> Message:
    """A message as {role, content}; reads ShareGPT's {from, value} and content in text parts, too. Raises Unusable."""
    unusable = Unusable(f"`{column}` is a list, but not of messages with the text of `role` and `content`")
    if not isinstance(item, dict):
        raise unusable
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if not (isinstance(role, str) and isinstance(content, str)):
        raise unusable
    role = {"human": "user", "gpt": "assistant"}.get(role, role)
    return {"role": _encodable(role, column), "content": _encodable(content, column)}


def prompt_text(prompt: str | Messages) -> str:
    """A prompt as one text: its identity, and the input of an oracle without a chat template.

    A conversation becomes its only message, or all messages as `role: content` with blank lines between.
    """
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message["content"].strip()]
    if len(said) == 1:
        return said[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)
