"""Text and conversations in the cells of a row; an unusable cell raises Unusable with a reason."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from stagealign.base.words import kind_of, short
from stagealign.data.formats import MISFIT, DataRow

Message: TypeAlias = Mapping[str, str]
Messages: TypeAlias = tuple[Message, ...]
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatbot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""The role of a chat template by its name in data: ShareGPT `human`, `gpt`, `bing`, `bard`; OpenAssistant `prompter`;
Cohere `chatbot`; Gemma `model`; OpenAI `developer`; in any spelling of upper and lower case."""
TOOL_ROLES = (
    "tool",
    "tools",
    "function",
    "function_call",
    "function_response",
    "observation",
    "ipython",
    "environment",
)
NO_MESSAGES = "`{}` is a list, but not of messages with the text of `role` and `content`"
TOOL_KEYS = ("tool_calls", "function_call")
MESSAGE_TEXT = re.compile(r"\s*(?:array\(\s*)?\[?\s*\{\s*['\"]\w+['\"]\s*:")
"""Start of an object, or of a list of objects, in JSON or Python text."""
EMPTY_TEXTS = ("", "[]", "{}", "null", "none", "nan")
"""Texts by which a table writes that a cell is empty, in lower case."""


class Unusable(Exception):
    """Reason why a row cannot be used. Rows are counted by it, so it contains no text of the row but names of roles."""


def text_in(row: DataRow, column: str) -> str | Messages:
    """Text as it stands, or the conversation of a list, in a column. Raises Unusable."""
    value = given_in(row, column)
    return _encodable(value, column) if isinstance(value, str) else conversation(value, column)


def conversation(value: Any, column: str) -> str | Messages:
    """Text, or turns with the roles of chat templates; also reads turns in JSON or Python text. Raises Unusable."""
    if isinstance(value, str):
        turns = _turns_in(value, column)
        return _encodable(value, column) if turns is None else conversation(turns, column)
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return conversation(value["messages"], column)
        if "role" in value or "from" in value:
            return (_message(value, column),)
    if isinstance(value, list):
        if not value:
            raise Unusable(f"empty `{column}`")
        return tuple(_message(item, column) for item in value)
    raise Unusable(f"`{column}` is {kind_of(value)}, not text or a list of messages")


def given_in(row: DataRow, column: str) -> Any:
    """The value of a cell. Raises Unusable if there is none."""
    value = row.get(column, Unusable)
    if value is Unusable:
        raise Unusable(f"no `{column}`")
    if value is MISFIT:
        raise Unusable("not as many cells as the header")
    if value is None:
        raise Unusable(f"`{column}` is null")
    return value


def blank(value: Any) -> bool:
    """True for a cell that says nothing: null, NaN, blank text, an empty list, an object without values."""
    if value is None or value is False:
        return True
    if isinstance(value, str):
        return not value or value.strip().lower() in EMPTY_TEXTS
    if isinstance(value, float):
        return value != value
    if isinstance(value, list | tuple):
        return all(blank(item) for item in value)
    return isinstance(value, dict) and all(blank(item) for item in value.values())


def unpacked(value: Any) -> Any:
    """The list or object that a text writes in JSON or Python's spelling; any other value as it is.

    Python text is read as literals only, never run. Also reads numpy's spelling of a list of objects, which pandas
    writes into CSV cells: `array([...], dtype=object)`, and objects on lines of their own without commas.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "array(")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    text = re.sub(r"\A\s*array\(\s*(.*?)\s*(?:,\s*dtype=object)?\s*\)\s*\Z", r"\1", value, flags=re.DOTALL)
    try:
        return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _turns_in(text: str, column: str) -> list[Any] | dict[str, Any] | None:
    """Messages that a text writes in JSON or Python's spelling; None for other text. Raises Unusable if it is cut."""
    if text[:1] not in "[{a \n" or not MESSAGE_TEXT.match(text):
        return None
    value = unpacked(text)
    if isinstance(value, str):
        if re.search(r"['\"](role|from)['\"]\s*:", text) and re.search(r"['\"](content|value)['\"]\s*:", text):
            raise Unusable(f"`{column}` begins as messages in JSON or Python text, but cannot be read to its end")
        return None
    items = value if isinstance(value, list) else [value]
    known = all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in items)
    return value if known and items else None


def _encodable(text: str, column: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"`{column}` has half a character (a lone surrogate)") from error
    return text


def _message(item: Any, column: str) -> Message:
    """A message as {role, content}; reads ShareGPT's {from, value} and content in text parts, too. Raises Unusable."""
    if not isinstance(item, dict):
        raise Unusable(NO_MESSAGES.format(column))
    role, content = item.get("role"), item.get("content")
    if len(item) == 2 and type(content) is str and isinstance(role, str) and role in ROLES:  # the usual message, fast
        return {"role": ROLES[role], "content": _encodable(content, column)}
    for key in TOOL_KEYS:
        if key in item and not blank(item[key]):
            raise Unusable(f"`{column}` calls a tool (`{key}`), which is not rendered")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(content, list):
        content = _joined(content, column)
    if not (isinstance(role, str) and isinstance(content, str)):
        raise Unusable(NO_MESSAGES.format(column))
    return {"role": role_of(role, column), "content": _encodable(content, column)}


def role_of(role: str, column: str) -> str:
    """`user`, `assistant` or `system` for a role's name in data. Raises Unusable, which names another role."""
    known = ROLES.get(role) or ROLES.get(role.strip().lower())
    if known is None:
        if role.strip().lower() in TOOL_ROLES:
            raise Unusable(f"`{column}` has a tool's turn (role {short(role)}), which is not rendered")
        raise Unusable(f"`{column}` has the role {short(role)}; known are user, assistant and system")
    return known


def _joined(parts: list[Any], column: str) -> str | None:
    """Content in text parts as one text; None if a part is something else. Raises Unusable for images and the like."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise Unusable(f"`{column}` has a part of type {short(kind)}; only text is read")
            return None
        texts.append(text)
    return "".join(texts)


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
