"""Chat markup inside of texts: turns that a template has already written, and turns with labels such as `User:`.

The markup of templates is recognized by its special tokens. Source: the chat templates in tokenizer_config.json of the
models named in `MARKUPS`.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from stagealign.data.texts import Messages, Unusable, role_of

ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eot|>", "<|end|>", "<|return|>", "<|endoftext|>",
    "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|eos|>", "</s>", "<eos>",
)  # fmt: skip
BEGINS = (
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<｜begin▁of▁sentence｜>",
    "<|endoftext|>",
    "<BOS_TOKEN>",
    "<bos>",
    "<s>",
)
SYSTEM_BLOCK = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
ALPACA_LEAD = "Below is an instruction"


@dataclass(frozen=True)
class Markup:
    """How one family of templates starts a turn."""

    name: str
    sign: str
    """Text that each marked text has; looked for first, as that is fast."""
    header: re.Pattern[str]
    """Start of a turn, with the group `role`."""


MARKUPS = (
    Markup("ChatML", "<|im_start|>", re.compile(r"<\|im_start\|>\s*(?P<role>\w+)(?:<\|im_sep\|>|\s*\n|\Z)")),
    Markup("Llama 3", "<|start_header_id|>", re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>")),
    Markup("Llama 4", "<|header_start|>", re.compile(r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>")),
    Markup("Gemma", "<start_of_turn>", re.compile(r"<start_of_turn>\s*(?P<role>\w+)(?:\n|\Z)")),
    Markup("gpt-oss", "<|message|>", re.compile(r"<\|start\|>(?P<role>\w+)(?:<\|channel\|>final)?<\|message\|>")),
    Markup("Granite", "<|start_of_role|>", re.compile(r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>")),
    Markup("Command R", "_TOKEN|>", re.compile(
        r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>USER|CHATBOT|SYSTEM)_TOKEN\|>")),
    Markup("DeepSeek", "<｜", re.compile(r"<｜(?P<role>User|Assistant)｜>")),
    Markup("Zephyr and Phi-3", "|>", re.compile(r"<\|(?P<role>system|user|assistant|prompter)\|>")),
    Markup("Mistral and Llama 2", "[/INST]", re.compile(r"(?P<role>\[/?INST\])")),
    Markup("Alpaca", "### ", re.compile(r"(?:\A|\n)### (?P<role>Instruction|Input|Response):")),
)  # fmt: skip
HEADER_ROLES = {
    "[inst]": "user",
    "[/inst]": "assistant",
    "instruction": "user",
    "input": "user",
    "response": "assistant",
}
INSIDE = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|header_start|start_of_role|START_OF_TURN_TOKEN|end_of_text"
    r"|system\|>|user\|>|assistant\|>)|<start_of_turn>|<end_of_turn>|\[/INST\]|<｜(?:User|Assistant)｜>"
)
"""Special tokens that no text has but one that a template wrote."""
USER_LABELS = "Human|HUMAN|User|USER|Prompter"
ASSISTANT_LABELS = "Assistant|ASSISTANT|Bot|BOT|Chatbot|AI|GPT|Model"
LABEL = rf"(?:\#{{2,3}}[ ]?)?(?P<role>{USER_LABELS}|{ASSISTANT_LABELS}|System|SYSTEM):"
BY_LINES, IN_LINES = re.compile(rf"(?:\A|\n)[ \t]*{LABEL}"), re.compile(rf"(?:\A|\s|(?=\#\#)){LABEL}")
FIRST_LABEL = re.compile(
    rf"\s*(?:A chat between .{{0,300}}?\s)?(?:\#{{2,3}}[ ]?)?(?:{USER_LABELS}|System|SYSTEM):", re.DOTALL
)
ANSWER_LABEL = re.compile(rf"\s*(?:\#{{2,3}}[ ]?)?(?:{ASSISTANT_LABELS}):")
QUESTIONS = re.compile(r"\s*(?:Question|Q|Instruction|Prompt|Input|SUBREDDIT|POST):")
ANSWERS = re.compile(r"(?:\A|\s)(?:Answer|A|Response|Completion|Output|TL;DR):")


def is_plain(value: Any) -> TypeGuard[str]:
    """True for the usual text: no sign of markup, of messages in JSON or of half characters."""
    return (
        type(value) is str
        and "<" not in value
        and ("[" not in value or "[/INST]" not in value)  # one character is found much faster than several
        and ("#" not in value or "### " not in value)
        and value[:1] not in "[{ \n\t\r"
        and value[:6] != "array("
        and (value.isascii() or _sound(value))
    )


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def marked_turns(text: str, column: str) -> tuple[str, Messages] | None:
    """(name of the markup, turns) of a text that a chat template wrote; None for a text without markup.

    A last turn of the assistant's that has not begun is left out. Raises Unusable for markup that is not whole turns.
    """
    if "<" not in text and "[/INST]" not in text and "### " not in text:
        return None
    for markup in MARKUPS:
        if markup.sign in text:
            headers = list(markup.header.finditer(text))
            if headers and (markup.name != "Alpaca" or _is_alpaca(text, headers)):
                return markup.name, _turns(text, headers, markup.name, column)
    return None


def _is_alpaca(text: str, headers: list[re.Match[str]]) -> bool:
    """True for the whole prompt of Alpaca's template; its headings alone are plain Markdown."""
    lead = text[: headers[0].start()].strip()
    return (not lead or lead.startswith(ALPACA_LEAD)) and len(headers) > 1 and headers[-1]["role"] == "Response"


def _turns(text: str, headers: list[re.Match[str]], name: str, column: str) -> Messages:
    """The turns that start at these headers. Raises Unusable."""
    turns: list[dict[str, str]] = []
    lead = _bare(text[: headers[0].start()])
    if lead:
        if name not in ("DeepSeek", "Alpaca"):
            raise Unusable(f"template markup ({name}) in the middle of `{column}`")
        if name == "DeepSeek":  # its template writes the system text without a mark
            turns.append({"role": "system", "content": lead})
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=True):
        label = header["role"].lower()
        role, content = role_of(HEADER_ROLES.get(label, label), column), _bare(text[header.end() : end])
        system = SYSTEM_BLOCK.match(content)
        if system:
            turns.append({"role": "system", "content": system[1].strip()})
            content = content[system.end() :].strip()
        if label == "input" and turns and content:
            turns[-1]["content"] += f"\n{content}"
        else:
            turns.append({"role": role, "content": content})
    turns = [turn for turn in turns if turn["content"] or turn["role"] != "system"]
    if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    if any(INSIDE.search(turn["content"]) for turn in turns):
        raise Unusable(f"template markup of two kinds in `{column}`")
    return tuple(turns)


def _bare(text: str) -> str:
    """A text without white space, begin tokens and end tokens around it."""
    text = text.strip()
    while True:
        bare = text
        for sign in BEGINS:
            bare = bare.removeprefix(sign)
        bare = without_ends(bare).strip()
        if bare == text:
            return bare
        text = bare


def without_ends(text: str) -> str:
    """A text without the end tokens, and the white space between them, with which it ends; else the text as it is."""
    bare = text.rstrip()
    if not bare.endswith(">"):
        return text
    for end in ENDS:
        if bare.endswith(end) and (end != "</s>" or "<s>" not in bare):
            return without_ends(bare.removesuffix(end)).rstrip()
    return text


def check_unmarked(text: str, column: str) -> None:
    """Raises Unusable for a text with special tokens of chat templates inside."""
    if ("<" in text or "[/INST]" in text) and INSIDE.search(text):
        raise Unusable(f"template markup inside of `{column}`")


@dataclass(frozen=True)
class LabelledTurn:
    """A turn of a text such as `User: ...` or `Assistant: ...`."""

    role: str
    start: int
    end: int
    """Index after the label's colon."""


def labelled(text: str) -> list[LabelledTurn]:
    """Turns of a text that starts with a user's or a system's label, by lines if an assistant's turn starts a line.

    Empty if the text is not in turns.
    """
    if ":" not in text or not FIRST_LABEL.match(text):
        return []
    for pattern in (BY_LINES, IN_LINES):
        found = [LabelledTurn(role_of(m["role"], ""), m.start(), m.end()) for m in pattern.finditer(text)]
        if len(found) > 1 and any(turn.role == "assistant" for turn in found):
            return found
    return []


def turns_before(text: str, turns: list[LabelledTurn]) -> Messages:
    """Messages of labelled turns but the last one, which waits for its completion."""
    lead = text[: turns[0].start].strip()
    messages = [{"role": "system", "content": lead}] if lead else []
    for turn, after in pairwise(turns):
        messages.append({"role": turn.role, "content": _bare(text[turn.end : after.start])})
    return tuple(messages)


def answer_start(text: str, shared: int) -> int:
    """Index after the last label of an answer (`Answer:`, `A:`) in the first `shared` characters of a text.

    0 if there is none, or the text does not start with a question's label.
    """
    if not QUESTIONS.match(text):
        return 0
    return max((match.end() for match in ANSWERS.finditer(text, 0, shared)), default=0)
