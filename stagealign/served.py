"""A policy behind an OpenAI-compatible server: two samples a prompt, with the decoding that the server can be told.

Servers differ in how they take the decoding, and some take a part of it without using it: `transformers serve` samples
only where a `generation_config` says so, and else gives one greedy text twice. So the best way that a server accepts
is found out first, and the answer says which it was.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from stagealign.errors import StagealignError
from stagealign.server import FIRST_ATTEMPTS, POLICY_KEYS, RequestFailed, Server, content_of, tokens_of
from stagealign.spec import Decoding, fingerprint, stream

TIMEOUT = 600.0
"""Seconds for one completion, the wait for those before it included: some servers write one at a time."""
WORKERS = 8
REFUSED = {400, 413, 422}
"""What a server answers to a request that it will never take."""
GIVE_UP = 10
"""Prompts that fail one after the other before the run is stopped."""
PROBE = "Write one sentence about the sea."

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Written:
    """Completions of one prompt, or why there are none."""

    completions: tuple[str, ...] = ()
    tokens: int = 0
    """As the server counts them."""
    truncated: int = 0
    failed: str | None = None


def _top_k(decoding: Decoding, tokens: int) -> dict[str, Any]:
    return _plain(decoding, tokens) | {"top_k": decoding.top_k}


def _generation_config(decoding: Decoding, tokens: int) -> dict[str, Any]:
    sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config = sampled if decoding.temperature > 0 else {"do_sample": False}
    return {"generation_config": json.dumps(config | {"max_new_tokens": tokens}), "max_tokens": tokens}


def _plain(decoding: Decoding, tokens: int) -> dict[str, Any]:
    return {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": tokens}


STYLES: dict[str, Callable[[Decoding, int], dict[str, Any]]] = {
    "top_k": _top_k,
    "generation_config": _generation_config,
    "plain": _plain,
}
"""Ways to tell a server the decoding, best first: vLLM's and others', `transformers serve`'s, and the API's own, which
has no top_k."""


class ServedPolicy:
    """The model called `name` on a server; it has answered a first question, so its way to be asked is known.

    Raises StagealignError where nothing answers.
    """

    def __init__(self, name: str, server: Server, decoding: Decoding, seed: int):
        self.name, self.server, self.decoding, self.seed = name, server, decoding, seed
        self.style, self.served = self._first()
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What tells this policy from another of the same name: what it says without chance."""
        said = self._ask(PROBE, _plain(Decoding(temperature=0.0), 16))
        text = content_of(said) or ""
        return {"served": self.name, "as": self.served, "style": self.style, "says": fingerprint({"text": text})}

    def _first(self) -> tuple[str, str | None]:
        """The first of `STYLES` that the server takes, and the model's name as it gives it."""
        for style, settings in STYLES.items():
            try:
                answer = self._chat("Say yes.", settings(self.decoding, 1))
            except RequestFailed as error:
                if error.status in REFUSED and style != "plain":
                    continue
                raise self._unusable(error) from error
            return style, self._named(answer)
        raise AssertionError("the last style ends the loop")

    def _ask(self, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._chat(prompt, settings)
        except RequestFailed as error:
            raise self._unusable(error) from error

    def _chat(self, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return self.server.chat(self.name, [{"role": "user", "content": prompt}], settings, attempts=FIRST_ATTEMPTS)

    def _unusable(self, error: RequestFailed) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {error}; see that the server runs, serves this model by this "
            "name, and that the URL ends where its API starts (mostly /v1)"
        )

    def _named(self, answer: Mapping[str, Any]) -> str | None:
        name = answer.get("model")
        return self.server.said(name) if isinstance(name, str) else None

    def write(self, prompts: Sequence[tuple[str, Messages]], count: int) -> Iterator[Written]:
        """`count` completions of each (hash, messages), in order, with some requests under way.

        A prompt that the server refuses, or fails on after all attempts, is a failure with its reason: one beyond its
        context, say. Raises StagealignError where the server stays away, fails on `GIVE_UP` prompts in a row, or gives
        its model another name than before; what was given up to there stands.
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="policy")
        waiting: deque[list[Future[tuple[str, int, bool]]]] = deque()
        streak = 0
        try:
            for place in range(len(prompts) + WORKERS):
                if place < len(prompts):
                    key, messages = prompts[place]
                    waiting.append([pool.submit(self._complete, key, messages, i, stop) for i in range(count)])
                if waiting and (len(waiting) > WORKERS or place >= len(prompts)):
                    written = self._written(waiting.popleft())
                    streak = streak + 1 if written.failed else 0
                    if streak == GIVE_UP:
                        raise self._stopped(f"{GIVE_UP} prompts in a row failed, the last with {written.failed}")
                    yield written
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _written(self, futures: Sequence[Future[tuple[str, int, bool]]]) -> Written:
        try:
            found = [future.result() for future in futures]
        except RequestFailed as error:
            if error.status is not None:
                return Written(failed=f"the policy's server answered {error}")
            raise self._stopped(str(error)) from error
        return Written(
            tuple(text for text, _, _ in found), sum(tokens for _, tokens, _ in found), sum(cut for *_, cut in found)
        )

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {reason}; what was measured is kept, run the same command "
            "again when it is back"
        )

    def _complete(self, key: str, messages: Messages, index: int, stop: threading.Event) -> tuple[str, int, bool]:
        """(text, tokens, whether it was cut) of one completion."""
        seed = stream(self.seed, "sample", key, index) % 2**31
        settings = STYLES[self.style](self.decoding, self.decoding.max_new_tokens)
        answer = self.server.chat(self.name, messages, settings | {"seed": seed}, stop)
        if self._named(answer) != self.served:
            raise StagealignError(
                f"policy {self.name!r}: the server named its model {self.served!r} and now {self._named(answer)!r}; "
                "samples of two policies are never mixed: name one exact version, and start again"
            )
        choice, text = answer["choices"][0], content_of(answer)
        if text is None and choice["message"].get("content") is not None:
            raise RequestFailed("something else than text", status=200)
        return (text or "").strip(), tokens_of(answer, "completion_tokens"), choice.get("finish_reason") == "length"


def connect(name: str, url: str, decoding: Decoding, seed: int) -> ServedPolicy:
    """A served policy that has answered; its key comes from the environment (`server.POLICY_KEYS`).

    Raises StagealignError where the URL cannot be used, or the model does not answer there.
    """
    return ServedPolicy(name, Server(url, POLICY_KEYS, timeout=TIMEOUT), decoding, seed)
