"""Rendering of a conversation: one form for policies and reward models, with or without a chat template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from stagealign.base.errors import BadData
from stagealign.base.reasoning import KEPT_MARKS
from stagealign.data.preferences import PreferenceRow
from stagealign.data.texts import Message, Messages, prompt_text

ROLES = ("system", "user", "assistant", "tool")
Conversation: TypeAlias = str | Sequence[Message]
"""A prompt: text, or turns that end where the completion starts."""
TemplateArguments: TypeAlias = Mapping[str, object]
"""Arguments of a chat template by name, such as `enable_thinking`."""
FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""Errors of a chat template that does not accept a conversation."""


class RefusedByTemplate(BadData):
    """A conversation that a chat template does not accept, or renders without one of its turns."""


def turns_of(prompt: Conversation) -> list[Message]:
    r"""Turns of a prompt; text is one turn of the user, or the turns of its `\n\nHuman:` and `\n\nAssistant:` marks."""
    if not isinstance(prompt, str):
        return list(prompt)
    return list(PreferenceRow(prompt, "", "").messages or ({"role": "user", "content": prompt},))


def plain_form(prompt: str, messages: Messages | None) -> Conversation:
    """The form of a prompt that a model without a chat template reads: its turns, or text with marks of its own.

    `prompt` is the text of `messages`, unless it has marks (HH-RLHF), which then stay as they are.
    """
    return messages if messages and prompt_text(messages) == prompt else prompt


def plain_prompt(prompt: Conversation) -> str:
    """A prompt as text for a model without a chat template.

    Text stays as it is, and so does a single turn. Several turns become `role: content` with blank lines between, and
    end in `assistant:` or in the assistant's words that the completion continues.
    """
    if isinstance(prompt, str):
        return prompt
    text, said = prompt_text(tuple(prompt)), [turn for turn in prompt if turn["content"].strip()]
    return text if len(said) == 1 or said[-1]["role"] == "assistant" else f"{text}\n\nassistant:"


def rendered_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, arguments: TemplateArguments | None = None
) -> str:
    """A prompt by the chat template, up to the start of the completion; a last turn of the assistant is continued.

    Raises RefusedByTemplate. Source: trl 1.16 `data_utils.apply_chat_template`.
    """
    turns = turns_of(prompt)
    continued = turns[-1]["role"] == "assistant"
    return _rendered(tokenizer, turns, arguments, add_generation_prompt=not continued, continue_final_message=continued)


def rendered_answer(tokenizer: PreTrainedTokenizerBase, prompt: Conversation, completion: str) -> str:
    """A prompt with its completion by the chat template; words of the assistant before it are the same turn.

    Raises RefusedByTemplate.
    """
    turns = turns_of(prompt)
    before = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    return _rendered(tokenizer, [*turns, {"role": "assistant", "content": before + completion}], None)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], arguments: TemplateArguments | None, **mode: bool
) -> str:
    for turn in turns:
        if turn["role"] not in ROLES:
            raise RefusedByTemplate(f"a turn has the role {turn['role']!r}; known are {', '.join(ROLES)}")
    names = [f"stagealign-{place}-" for place in range(len(turns))]
    named = [{**turn, "content": name} for turn, name in zip(turns, names, strict=True)]
    try:
        text, outline = (
            str(tokenizer.apply_chat_template(list(given), tokenize=False, **dict(arguments or {}), **mode))
            for given in (turns, named)
        )
    except FAILURES as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RefusedByTemplate(f"the chat template refuses the conversation ({reason})") from error
    for turn, name in zip(turns, names, strict=True):
        if name not in outline:  # some templates skip roles that they do not know
            raise RefusedByTemplate(f"the chat template leaves out a turn of role {turn['role']!r}")
    return text


def joint_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """Token ids of text that goes on: with `special`, those that the tokenizer puts before it, without those after.

    A tokenizer that adds EOS would otherwise end a prompt before its completion.
    """
    bare = list(tokenizer(text, add_special_tokens=False).input_ids)
    ids = list(tokenizer(text).input_ids) if special else bare
    start = next((at for at in range(len(ids) - len(bare) + 1) if ids[at : at + len(bare)] == bare), None)
    return ids if start is None else ids[: start + len(bare)]


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """Function from token ids to text without special tokens, except marks of reasoning."""
    special = {token: str(added.content) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = {token: text for token, text in special.items() if text in KEPT_MARKS}

    def decode(ids: Sequence[int], **options: Any) -> str:
        pieces: list[str] = []
        start = 0
        for place, token in enumerate(ids):
            if token in marks:
                pieces += [tokenizer.decode(list(ids[start:place]), skip_special_tokens=True), marks[token]]
                start = place + 1
        return "".join([*pieces, tokenizer.decode(list(ids[start:]), skip_special_tokens=True)])

    return decode
