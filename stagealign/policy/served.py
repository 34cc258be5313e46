"""A policy behind an OpenAI-compatible server: several samples per prompt, with decoding settings sent in the request.

Servers accept decoding settings in different ways, and some accept settings that they ignore: `transformers serve`
samples only if a `generation_config` asks for it, and else returns the same greedy text each time. The best style that
a server accepts is therefore found first and recorded.

A cell's policies are folders that are built during the run; `served_samples` samples them from a server that loads the
model that a request names, as `transformers serve` does on the same file system.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

from stagealign.base.asking import GIVE_UP, Asking
from stagealign.base.chat import ChatAnswer, content_of, has_reasoning, tokens_of
from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint, stream
from stagealign.base.server import FIRST_ATTEMPTS, POLICY_KEYS, RequestFailed, Server
from stagealign.grid.spec import Decoding
from stagealign.policy.served_texts import KeptCompletions, ServedCompletions, ServedText
from stagealign.store.artifact import Identity

TIMEOUT = 600.0
"""Seconds for one completion, including the wait for earlier ones: some servers write one at a time."""
WORKERS = 8
REFUSED = {400, 413, 422}
"""Statuses of a server that does not accept the request's settings."""
PROBE = "Write one sentence about the sea."
ChatMessages = Sequence[Mapping[str, str]]


RequestFields = Mapping[str, object]
"""Fields of a request besides model and messages."""


class Style(Protocol):
    """Request fields for the decoding, the most tokens and, if the server accepts them, the end tokens."""

    def __call__(self, decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> RequestFields: ...


def _top_k(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> RequestFields:
    return {**_plain(decoding, tokens), "top_k": decoding.top_k}


def _generation_config(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> RequestFields:
    """Raises StagealignError for penalties, which a generation config does not have."""
    if penalties(decoding):
        raise StagealignError(
            "this server takes the decoding as a generation config, which has no presence or frequency penalty; use a "
            "server that takes the API's own fields and `top_k`, such as `vllm serve`"
        )
    sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config: RequestFields = sampled if decoding.temperature > 0 else {"do_sample": False}
    ending = {"eos_token_id": list(ends), "pad_token_id": ends[0]} if ends else {}
    return {
        "generation_config": json.dumps({**config, "max_new_tokens": tokens, **ending}),
        "max_tokens": tokens,
    }


def _plain(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> RequestFields:
    settings = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": tokens}
    return {**settings, **penalties(decoding)}


def penalties(decoding: Decoding) -> dict[str, float]:
    """Request fields of the penalties; a penalty of 0 is left out, as not every server knows the fields."""
    given = {"presence_penalty": decoding.presence_penalty, "frequency_penalty": decoding.frequency_penalty}
    return {name: value for name, value in given.items() if value}


STYLES: dict[str, Style] = {
    "top_k": _top_k,
    "generation_config": _generation_config,
    "plain": _plain,
}
"""Ways to send the decoding, best first: of vLLM and others, of `transformers serve`, and of the API itself, which has
no top_k."""


@dataclass(frozen=True)
class Manner:
    """Style and end tokens of requests to a server, if known beforehand."""

    style: str | None = None
    """Key of `STYLES`; None tries them in turn."""
    ends: tuple[int, ...] = ()
    """End tokens of the policy, for a style that can send them."""
    template_args: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the chat template, sent as `chat_template_kwargs`."""


class NotAsked(RequestFailed):
    """A request that this server would answer wrongly, and so is not sent."""


class ServedPolicy:
    """The model called `name` on a server; creating it asks one question, which determines the style.

    Raises StagealignError if the model does not answer.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        decoding: Decoding,
        seed: int,
        manner: Manner = Manner(),
        kept: KeptCompletions | None = None,
    ):
        """`kept`: store of completions of earlier calls and of new ones; None keeps nothing."""
        self.name, self.server, self.decoding, self.seed = name, server, decoding, seed
        self.manner, self.kept = manner, KeptCompletions(None) if kept is None else kept
        self.style, self.served = self._first(STYLES if manner.style is None else {manner.style: STYLES[manner.style]})

    @cached_property
    def identity(self) -> Identity:
        """Name, style, and a hash of one greedy answer, which distinguishes policies of the same name."""
        text = content_of(self._ask(PROBE, _plain(Decoding(temperature=0.0), 16))) or ""
        return {"served": self.name, "as": self.served, "style": self.style, "says": fingerprint({"text": text})}

    @cached_property
    def continues(self) -> bool:
        """True if the server can continue a turn of the assistant; only vLLM is known to."""
        return self.server.is_vllm()

    def _template(self, messages: ChatMessages) -> RequestFields:
        """Request fields for the chat template of vLLM and others. Raises NotAsked."""
        arguments = self.manner.template_args
        fields: RequestFields = {"chat_template_kwargs": dict(arguments)} if arguments else {}
        if messages[-1]["role"] != "assistant":
            return fields
        if not self.continues:
            raise NotAsked(
                "the prompt ends in a turn of the assistant, which this server would not continue; use `vllm serve`"
            )
        return {**fields, "add_generation_prompt": False, "continue_final_message": True}

    def _first(self, styles: Mapping[str, Style]) -> tuple[str, str | None]:
        """(first of `styles` that the server accepts, the model's name by the server)."""
        for style, settings in styles.items():
            try:
                answer = self._chat("Say yes.", settings(self.decoding, 1))
            except RequestFailed as error:
                if error.status in REFUSED and style != list(styles)[-1]:
                    continue
                raise self._unusable(error) from error
            return style, self.server.name_in(answer)
        raise AssertionError("the last style ends the loop")

    def _ask(self, prompt: str, settings: RequestFields) -> ChatAnswer:
        try:
            return self._chat(prompt, settings)
        except RequestFailed as error:
            raise self._unusable(error) from error

    def _chat(self, prompt: str, settings: RequestFields) -> ChatAnswer:
        messages = [{"role": "user", "content": prompt}]
        fields = {**settings, **self._template(messages)}
        return self.server.chat(self.name, messages, fields, attempts=FIRST_ATTEMPTS)

    def _unusable(self, error: RequestFailed) -> StagealignError:
        given = self.manner.template_args
        arguments = "; leave --template-args out if it knows no `chat_template_kwargs`" if given else ""
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {error}; check that the server runs and serves this model by "
            f"this name, and that the URL ends where its API starts (mostly /v1){arguments}"
        )

    def write(
        self, prompts: Sequence[tuple[str, ChatMessages]], count: int, most: Mapping[str, int] | None = None
    ) -> Iterator[ServedCompletions]:
        """Yields `count` completions of each (hash, messages), in order; requests run concurrently.

        `most`: new tokens by hash, where the context leaves fewer than asked for; None if the context is not known.
        Then a server that refuses so many new tokens is asked again without a limit of ours, and its own cap counts.

        A prompt that the server refuses (too long, for example), or fails on after all attempts, yields a failure with
        its reason. Raises StagealignError if the server cannot be reached, fails on `GIVE_UP` prompts in a row, or
        gives its model another name than before; completions until then are kept.
        """
        asking: Asking[tuple[str, ChatMessages], ServedText, ServedCompletions] = Asking(
            requests=lambda prompt: [partial(self._complete, prompt, index, most) for index in range(count)],
            answer=lambda prompt, parts: self._written(parts),
            failed=lambda written: None if written.refused else written.failed,
            error=lambda reason: self._stopped(f"{GIVE_UP} prompts in a row failed, the last with {reason}"),
            workers=WORKERS,
            give_up=GIVE_UP,
            name="policy",
        )
        with closing(asking.in_order(prompts)) as completions:
            yield from completions

    def _written(self, parts: Sequence[ServedText | RequestFailed]) -> ServedCompletions:
        for part in parts:
            if isinstance(part, NotAsked):
                return ServedCompletions(failed=str(part), refused=True)
            if isinstance(part, RequestFailed):
                if part.status is not None:
                    refused = part.status in {*REFUSED, 200}
                    return ServedCompletions(failed=f"the policy's server answered {part}", refused=refused)
                raise self._stopped(str(part)) from part
        return ServedCompletions(tuple(part for part in parts if not isinstance(part, RequestFailed)))

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {reason}; completions so far are kept; run the same "
            "command again when the server is back"
        )

    def _complete(
        self, prompt: tuple[str, ChatMessages], index: int, most: Mapping[str, int] | None, over: threading.Event
    ) -> ServedText:
        """One completion, from those kept or from the server. Raises RequestFailed, StagealignError."""
        key, messages = prompt
        kept = self.kept.get(key, index)
        if kept is not None:
            return kept
        asked = self.decoding.max_new_tokens
        tokens = asked if most is None else most[key]
        settings = {**STYLES[self.style](self.decoding, tokens, self.manner.ends), **self._template(messages)}
        seed = stream(self.seed, "sample", key, index) % 2**31
        answer, capped = self._asked(messages, {**settings, "seed": seed}, most is None, over)
        name = self.server.name_in(answer)
        if name != self.served:
            raise StagealignError(
                f"policy {self.name!r}: the server named its model {self.served!r} and now {name!r}; "
                "samples of two policies are never mixed: name one exact version and start again"
            )
        text, apart = content_of(answer), has_reasoning(answer)
        if text is None and not apart:
            raise RequestFailed("no text in the answer", status=200)
        cut = answer["choices"][0].get("finish_reason") == "length"
        used = tokens_of(answer, "completion_tokens")
        completion = ServedText(text or "", used, cut, capped or tokens < asked, apart)
        self.kept.add(key, index, completion)
        return completion

    def _asked(
        self, messages: ChatMessages, settings: RequestFields, again: bool, over: threading.Event
    ) -> tuple[ChatAnswer, bool]:
        """(answer, whether the server's context capped it); `again`: whether a refused limit is left out once.

        vLLM answers 400 where prompt and `max_tokens` exceed the context, and without it takes what the context leaves.
        """
        try:
            return self.server.chat(self.name, messages, settings, over), False
        except RequestFailed as error:
            if not again or error.status not in REFUSED or self.style == "generation_config":
                raise
        free = {name: value for name, value in settings.items() if name != "max_tokens"}
        answer = self.server.chat(self.name, messages, free, over)
        if tokens_of(answer, "completion_tokens") > self.decoding.max_new_tokens:
            raise RequestFailed("it refused `max_tokens`, and without it writes more than was asked for", status=400)
        return answer, True


def connect(
    name: str, url: str, decoding: Decoding, seed: int, template_args: Mapping[str, object] | None = None
) -> ServedPolicy:
    """A served policy that has answered a first question; its key comes from the environment (`server.POLICY_KEYS`).

    Raises StagealignError if the URL is invalid or the model does not answer.
    """
    manner = Manner(template_args=template_args or {})
    return ServedPolicy(name, Server(url, POLICY_KEYS, timeout=TIMEOUT), decoding, seed, manner)
