"""Reasoning that a model writes before its answer: found by its marks and taken off before the answer is judged."""

import re
from dataclasses import dataclass

MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
"""Opening mark -> closing mark. Sources: chat templates of Qwen3, DeepSeek-R1, Seed-OSS and Magistral; data sets."""
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""Marks of the harmony format of gpt-oss: the answer follows `FINAL`, other channels before it are reasoning."""
KEPT_MARKS = (*MARKS, *MARKS.values(), CHANNEL, "<|message|>")
"""Marks that a decoder must keep even where they are special tokens."""
OPENING, CLOSING = ("|".join(map(re.escape, marks)) for marks in (MARKS, MARKS.values()))
QUOTES = "`'\"\u2018\u2019\u201c\u201d"
SAMPLED = re.compile(rf"(?<![{QUOTES}])(?:(?P<open>{OPENING})|(?P<close>{CLOSING}))(?![{QUOTES}])")
"""Marks in a model's own text; a quoted mark is a mention."""
GIVEN = re.compile(rf"^[ \t]*(?P<open>{OPENING})|(?P<close>{CLOSING})(?=\s*\n|\s*\Z)|(?<=\n)(?P<last>{CLOSING})", re.M)
"""Marks in a text of unknown origin, by stricter rules: one opens a line, and the other begins or ends one."""


@dataclass(frozen=True)
class Answer:
    """A text without the reasoning before its answer."""

    text: str
    """The answer; the text as given if it has no reasoning."""
    reasoned: bool = False
    """True if reasoning was taken off."""
    finished: bool = True
    """False if the text ends inside its reasoning, so that it has no answer."""


def answer_of(text: str, opened: bool = False) -> Answer:
    """The answer in a text that a policy wrote; `opened` if the prompt ended inside reasoning.

    Each block of reasoning is taken off. A closing mark without an opening one ends reasoning that the prompt opened.
    Source: vLLM's `BaseThinkingReasoningParser`. Deviations: text before a block is kept, a block may
    follow the answer.
    """
    return _final(text) if CHANNEL in text else _without_blocks(text, SAMPLED, opened)


def answer_in_data(text: str) -> Answer:
    """The answer in a text of the data, whose marks may also be a mention; see `GIVEN`."""
    if FINAL in text:
        return _final(text)
    end = re.search(rf"\A\s*(?:{OPENING}).*?(?P<close>{CLOSING})", text, re.DOTALL)
    if end is None:
        return _without_blocks(text, GIVEN, False)
    rest = _without_blocks(text[end.end() :], GIVEN, False, True)
    return Answer(rest.text.lstrip(), True, rest.finished)


def opens_reasoning(prompt: str) -> bool:
    """True if a rendered prompt ends in an opening mark, as templates of reasoning models do."""
    return prompt.rstrip().endswith(tuple(MARKS))


def ends_reasoning(text: str) -> bool:
    """True if the first mark in a policy's text is a closing one: its prompt ended inside reasoning."""
    mark = SAMPLED.search(text)
    return mark is not None and not mark["open"]


def _final(text: str) -> Answer:
    _, mark, answer = text.rpartition(FINAL)
    return Answer(answer if mark else "", True, bool(mark))


def _without_blocks(text: str, marks: re.Pattern[str], opened: bool, reasoned: bool = False) -> Answer:
    kept: list[str] = []
    place, inside = 0, opened
    for mark in marks.finditer(text):
        if not mark["open"]:
            if not inside and not reasoned:  # the prompt opened it
                kept.clear()
            elif not inside:
                kept.append(text[place : mark.start()])
            place, inside, reasoned = mark.end(), False, True
        elif not inside:
            kept.append(text[place : mark.start()])
            inside = True
    if not inside:
        kept.append(text[place:])
    if not (reasoned or inside):
        return Answer(text)
    return Answer("".join(kept).lstrip(), True, not inside)
