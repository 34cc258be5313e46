"""Body of a chat completion, as an OpenAI-compatible server sends it."""

from collections.abc import Mapping
from typing import Any, Required, TypedDict

MOST_TOKENS = 10**12
"""Upper limit for the tokens of one answer, as a server may report nonsense."""


class Choice(TypedDict, total=False):
    """A choice of a chat completion. Only `message` is checked: all else is as the server sends it."""

    message: Required[Mapping[str, object]]
    finish_reason: object
    logprobs: Any


class ChatAnswer(TypedDict, total=False):
    """Body of a chat completion. Its first choice has a message; all else is as the server sends it."""

    choices: Required[list[Choice]]
    model: object
    usage: object


def content_of(answer: ChatAnswer) -> str | None:
    """Text of a chat answer's first choice, lone surrogates replaced; None if it has none."""
    content = answer["choices"][0]["message"].get("content")
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else None


def has_reasoning(answer: ChatAnswer) -> bool:
    """True if the server took reasoning off the text and sent it in a field of its own, as a reasoning parser does."""
    message = answer["choices"][0]["message"]
    return any(bool(message.get(name)) for name in ("reasoning_content", "reasoning"))


def tokens_of(answer: ChatAnswer, name: str) -> int:
    """Number of tokens in the field `name` of the server's own count, at most `MOST_TOKENS`; 0 if it gives none."""
    used = answer.get("usage")
    count = used.get(name) if isinstance(used, dict) else None
    return max(0, min(count, MOST_TOKENS)) if isinstance(count, int) and not isinstance(count, bool) else 0


def first_token(answer: ChatAnswer) -> object:
    """Likeliest tokens and log-probs of an answer's first token, as the server sends them; None without any."""
    try:
        top: object = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError):
        return None
    return top


def with_usage_of(answer: ChatAnswer, other: ChatAnswer) -> ChatAnswer:
    """The answer with the tokens of another one added to its own, where both were billed for one question."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: tokens_of(answer, name) + tokens_of(other, name) for name in names}
    both: ChatAnswer = {**answer, "usage": usage}
    return both


def was_cut(answer: ChatAnswer) -> bool:
    """True if the answer ended at its limit of tokens."""
    return answer["choices"][0].get("finish_reason") == "length"
