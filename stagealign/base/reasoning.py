"""Reasoning that a model writes before its answer: found by its marks and taken off before the answer is judged."""

import re
from dataclasses import dataclass, replace

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
QUOTES = "`'\"\u2018\u2019\u201c\u201d"
OPENING, CLOSING = (
    rf"(?<![{QUOTES}])(?:{'|'.join(map(re.escape, marks))})(?![{QUOTES}])" for marks in (MARKS, MARKS.values())
)
"""A mark in quotes is a mention."""
BLOCK = re.compile(rf"{OPENING}.*?{CLOSING}", re.DOTALL)
BLOCK_IN_DATA = re.compile(rf"^[ \t]*{OPENING}.*?{CLOSING}", re.DOTALL | re.MULTILINE)
CLOSED = re.compile(CLOSING)
CLOSED_ALONE = re.compile(rf"{CLOSING}(?=[ \t]*\n)|(?<=\n){CLOSING}")
"""A closing mark at an end of its line, without an opening one: reasoning that the prompt opened."""
OPENED = re.compile(OPENING)
OPENED_ALONE = re.compile(rf"(?:\A\s*|^[ \t]*){OPENING}(?=\s|\Z)", re.MULTILINE)
"""An opening mark at the start of its line, without a closing one: reasoning that was cut."""
MARK = re.compile(f"{OPENING}|{CLOSING}")


@dataclass(frozen=True)
class Answer:
    """A text without the reasoning before its answer."""

    text: str
    """The answer; the text as given if it has no reasoning."""
    reasoned: bool = False
    """True if reasoning was taken off."""
    finished: bool = True
    """False if the text ends inside its reasoning and has no answer."""

    @property
    def marked(self) -> bool:
        """True if a mark of reasoning stands amid the text, so that it may hold reasoning still."""
        return bool(MARK.search(self.text))

    def cut_short(self, cut: bool) -> "Answer":
        """The same answer of a text that was `cut` at the token limit: no answer if it is cut before its first word."""
        return replace(self, finished=False) if cut and self.reasoned and not self.text.strip() else self


def answer_of(text: str, opened: bool = False, thinks: bool = False) -> Answer:
    """The answer in a text that a policy wrote; `opened` if the prompt ended inside reasoning.

    `thinks`: the policy's chat template knows the marks, so each mark counts. Otherwise a mark without its counterpart
    counts at an end of its line only, as a policy may also write it by chance or as a mention.
    Source: vLLM's `BaseThinkingReasoningParser`. Deviations: text before a block is kept, a block may follow the
    answer.
    """
    if CHANNEL in text:
        return _final(text)
    if opened:
        end = CLOSED.search(text)
        if end is None:
            return Answer("", True, False)
        return Answer(_without(text[end.end() :], BLOCK, thinks).text.lstrip(), True)
    return _without(text, BLOCK, thinks)


def answer_in_data(text: str) -> Answer:
    """The answer in a text of the data: as `answer_of`, but a block starts a line, as marks may be a mention."""
    return _final(text) if FINAL in text else _without(text, BLOCK_IN_DATA)


def opens_reasoning(prompt: str) -> bool:
    """True if a rendered prompt ends in an opening mark, as templates of reasoning models do."""
    return prompt.rstrip().endswith(tuple(MARKS))


def knows_marks(template: str) -> bool:
    """True if a chat template has marks of reasoning."""
    return any(mark in template for mark in KEPT_MARKS)


def ends_reasoning(text: str) -> bool:
    """True if a text begins inside reasoning that it then closes: its prompt ended there."""
    return not BLOCK.search(text) and bool(CLOSED_ALONE.search(text))


def _final(text: str) -> Answer:
    _, mark, answer = text.rpartition(FINAL)
    return Answer(answer if mark else "", True, bool(mark))


def _without(text: str, blocks: re.Pattern[str], thinks: bool = False) -> Answer:
    """The text without blocks of reasoning, without a start that only ends, and without an end that only starts."""
    rest, removed = blocks.subn("", text)
    ends = list((CLOSED if thinks else CLOSED_ALONE).finditer(rest))
    if ends and (thinks or not removed):
        rest, removed = rest[ends[-1 if thinks else 0].end() :], removed + 1
    cut = (OPENED if thinks else OPENED_ALONE).search(rest)
    if cut is not None:
        rest = rest[: cut.start()].rstrip()
    if not removed and cut is None:
        return Answer(text)
    return Answer(rest.lstrip(), True, cut is None or bool(rest.strip()))
