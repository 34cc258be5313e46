"""Columns beside the prompt: system texts and earlier turns become turns; tools and media make a row unusable."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stagealign.data.formats import DataRow
from stagealign.data.markup import labelled, turns_before
from stagealign.data.texts import Message, Messages, Unusable, blank, conversation, given_in, unpacked

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")
HISTORY = ("history", "chat_history", "previous_messages", "previous_turns")
TOOLS = ("tools", "functions", "tool_calls", "function_call", "available_tools")
MEDIA = re.compile(
    r"(?:(?:chosen|rejected)_)?(?:images?|videos?|audios?|media|pixel_values)(?:_(?:paths?|urls?|files?|bytes))?"
)


def is_context(column: str) -> bool:
    """True for a column that changes what the model was asked."""
    return column in SYSTEM or column in HISTORY or is_refused(column)


def is_refused(column: str) -> bool:
    """True for a column of tools or media, which cannot be shown to a policy here."""
    return column in TOOLS or MEDIA.fullmatch(column) is not None


def with_context(prompt: str | Messages, row: DataRow, columns: Iterable[str]) -> str | Messages:
    """The prompt with the system text and the earlier turns of these columns. Raises Unusable for tools and media."""
    system: str | None = None
    before: Messages = ()
    for column in columns:
        value = row.get(column)
        if blank(value):
            continue
        if is_refused(column):
            raise Unusable(f"uses `{column}`, which are not rendered")
        if column in HISTORY:
            before += _history(value, column)
        elif system is None:
            system = _system(row, column)
        elif system != _system(row, column):
            raise Unusable("two columns of system texts that differ")
    if system is None and not before:
        return prompt
    turns = _as_turns(prompt)
    if before and not all(turn in turns for turn in before):
        lead = [turn for turn in turns if turn["role"] == "system"]
        turns = (*lead, *before, *turns[len(lead) :])
    if system is not None:
        first: Message = {"role": "system", "content": system}
        if turns[0]["role"] == "system" and turns[0]["content"].strip() != system.strip():
            raise Unusable("the system turn of the prompt differs from the column's")
        turns = turns if turns[0]["role"] == "system" else (first, *turns)
    return turns


def _as_turns(prompt: str | Messages) -> Messages:
    """A prompt as turns; text in labelled turns that ends with the assistant's label is read as such."""
    if not isinstance(prompt, str):
        return prompt
    turns = labelled(prompt)
    if turns and turns[-1].role == "assistant" and not prompt[turns[-1].end :].strip():
        return turns_before(prompt, turns)
    return ({"role": "user", "content": prompt},)


def _system(row: DataRow, column: str) -> str:
    value = conversation(given_in(row, column), column)
    if isinstance(value, str):
        return value
    if len(value) > 1:
        raise Unusable(f"`{column}` has more than one turn")
    return value[0]["content"]


def _history(value: Any, column: str) -> Messages:
    """Earlier turns: messages, or [user, assistant] pairs as in LLaMA-Factory. Raises Unusable."""
    value = unpacked(value)
    if not isinstance(value, list):
        raise Unusable(f"`{column}` is not a list of turns")
    turns: list[Message] = []
    for item in value:
        if isinstance(item, Mapping):
            turns += [turn for turn in conversation([item], column) if isinstance(turn, Mapping)]
        elif isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(said, str) for said in item):
            pair = zip(("user", "assistant"), item, strict=True)
            turns += [{"role": role, "content": said} for role, said in pair if said.strip()]
        else:
            raise Unusable(f"`{column}` is a list, but not of messages or pairs of texts")
    return tuple(turns)
