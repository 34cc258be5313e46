"""A policy behind an OpenAI-compatible server: two samples a prompt, with the decoding that the server can be told.

Servers differ in how they take the decoding, and some take a part of it without using it: `transformers serve` samples
only where a `generation_config` says so, and else gives one greedy text twice. So the best way that a server accepts
is found out first, and the answer says which it was.

A cell's policies are folders, built during the run. `build` samples them from a server that loads the model that a
request names, as `transformers serve` does on the same file system; one that answers for whatever it has loaded is
refused. Each policy is asked for by a name that holds its fingerprint, so that a server never answers with what stood
at the same path before.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from stagealign.base.asking import GIVE_UP, Asking
from stagealign.base.chat import ChatAnswer, content_of, tokens_of
from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint, stream
from stagealign.base.server import FIRST_ATTEMPTS, POLICY_KEYS, RequestFailed, Server
from stagealign.base.shapes import FLAG, TEXT, WHOLE, misfit
from stagealign.grid.spec import Decoding
from stagealign.store.artifact import Identity
from stagealign.store.kept import RowFile

TIMEOUT = 600.0
"""Seconds for one completion, the wait for those before it included: some servers write one at a time."""
WORKERS = 8
REFUSED = {400, 413, 422}
"""What a server answers to a request that it will never take."""
PROBE = "Write one sentence about the sea."
Messages = Sequence[Mapping[str, str]]


Request = Mapping[str, object]
"""Fields of a request beside model and messages."""


@dataclass(frozen=True)
class ServedText:
    """One completion as it came."""

    text: str
    tokens: int
    """As the server counts them."""
    cut: bool
    """Ended at the token limit."""


@dataclass(frozen=True)
class ServedCompletions:
    """Completions of one prompt, or the reason why there are none."""

    texts: tuple[ServedText, ...] = ()
    failed: str | None = None

    @property
    def completions(self) -> tuple[str, ...]:
        """Texts without white space around them."""
        return tuple(one.text.strip() for one in self.texts)

    @property
    def tokens(self) -> int:
        """As the server counts them."""
        return sum(one.tokens for one in self.texts)

    @property
    def truncated(self) -> int:
        """Number of completions that ended at the token limit."""
        return sum(one.cut for one in self.texts)


class KeptCompletions:
    """Completions by prompt hash and index. Each is on disk as soon as it comes; many threads may add."""

    def __init__(self, path: Path | None):
        """Reads what earlier calls kept at `path`; without one nothing is kept."""
        self._file = None if path is None else RowFile(path, lambda row: misfit(row, KEPT) is None)
        self._texts = {
            (row["key"], row["index"]): ServedText(row["text"], row["tokens"], row["cut"])
            for _, row in (self._file.read() if self._file else ())
        }

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str, index: int) -> ServedText | None:
        """The completion of a prompt; None if it is not kept."""
        return self._texts.get((key, index))

    def add(self, key: str, index: int, text: ServedText) -> None:
        """Keeps a completion. Raises CannotRun if the disk does not take it."""
        if self._file:
            self._file.add({"key": key, "index": index, **asdict(text)})
            self._texts[key, index] = text


KEPT = {"key": TEXT, "index": WHOLE, "text": TEXT, "tokens": WHOLE, "cut": FLAG}
"""Shape of a row of `KeptCompletions`."""


class Style(Protocol):
    """Tells a server the decoding, the most tokens, and the end tokens if it can be told them."""

    def __call__(self, decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> Request: ...


def _top_k(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> Request:
    return {**_plain(decoding, tokens), "top_k": decoding.top_k}


def _generation_config(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> Request:
    """Raises StagealignError for penalties, which a generation config does not have."""
    if penalties(decoding):
        raise StagealignError(
            "this server is told the decoding by a generation config, which has no presence or frequency penalty; use "
            "one that takes the API's own fields and `top_k`, such as `vllm serve`"
        )
    sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config: Request = sampled if decoding.temperature > 0 else {"do_sample": False}
    ending = {"eos_token_id": list(ends), "pad_token_id": ends[0]} if ends else {}
    return {
        "generation_config": json.dumps({**config, "max_new_tokens": tokens, **ending}),
        "max_tokens": tokens,
    }


def _plain(decoding: Decoding, tokens: int, ends: Sequence[int] = ()) -> Request:
    settings = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": tokens}
    return {**settings, **penalties(decoding)}


def penalties(decoding: Decoding) -> dict[str, float]:
    """The API's fields of the penalties; none where there are none, so that a server need not know them."""
    given = {"presence_penalty": decoding.presence_penalty, "frequency_penalty": decoding.frequency_penalty}
    return {name: value for name, value in given.items() if value}


STYLES: dict[str, Style] = {
    "top_k": _top_k,
    "generation_config": _generation_config,
    "plain": _plain,
}
"""Ways to tell a server the decoding, best first: vLLM's and others', `transformers serve`'s, and the API's own, which
has no top_k."""


@dataclass(frozen=True)
class Manner:
    """How a server is asked, as far as that is known beforehand."""

    style: str | None = None
    """Key of `STYLES`; None tries them in turn."""
    ends: tuple[int, ...] = ()
    """End tokens of the policy, for a style that can tell them."""


class ServedPolicy:
    """The model called `name` on a server; it has answered a first question, so its way to be asked is known.

    Raises StagealignError where nothing answers.
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
        """`kept`: completions of earlier calls, and where new ones go; None keeps nothing."""
        self.name, self.server, self.decoding, self.seed = name, server, decoding, seed
        self.ends, self.kept = manner.ends, KeptCompletions(None) if kept is None else kept
        self.style, self.served = self._first(STYLES if manner.style is None else {manner.style: STYLES[manner.style]})

    @cached_property
    def identity(self) -> Identity:
        """Name and style, and what the policy says without chance: this tells it from another of the same name."""
        text = content_of(self._ask(PROBE, _plain(Decoding(temperature=0.0), 16))) or ""
        return {"served": self.name, "as": self.served, "style": self.style, "says": fingerprint({"text": text})}

    def _first(self, styles: Mapping[str, Style]) -> tuple[str, str | None]:
        """The first of `styles` that the server takes, and the model's name as it gives it."""
        for style, settings in styles.items():
            try:
                answer = self._chat("Say yes.", settings(self.decoding, 1))
            except RequestFailed as error:
                if error.status in REFUSED and style != list(styles)[-1]:
                    continue
                raise self._unusable(error) from error
            return style, self.server.name_in(answer)
        raise AssertionError("the last style ends the loop")

    def _ask(self, prompt: str, settings: Request) -> ChatAnswer:
        try:
            return self._chat(prompt, settings)
        except RequestFailed as error:
            raise self._unusable(error) from error

    def _chat(self, prompt: str, settings: Request) -> ChatAnswer:
        return self.server.chat(self.name, [{"role": "user", "content": prompt}], settings, attempts=FIRST_ATTEMPTS)

    def _unusable(self, error: RequestFailed) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {error}; see that the server runs, serves this model by this "
            "name, and that the URL ends where its API starts (mostly /v1)"
        )

    def write(self, prompts: Sequence[tuple[str, Messages]], count: int) -> Iterator[ServedCompletions]:
        """`count` completions of each (hash, messages), in order, with some requests under way.

        A prompt that the server refuses, or fails on after all attempts, is a failure with its reason: one beyond its
        context, say. Raises StagealignError where the server stays away, fails on `GIVE_UP` prompts in a row, or gives
        its model another name than before; what was given up to there stands.
        """
        asking: Asking[tuple[str, Messages], ServedText, ServedCompletions] = Asking(
            requests=lambda prompt: [partial(self._complete, prompt[0], prompt[1], index) for index in range(count)],
            answer=lambda prompt, parts: self._written(parts),
            failed=lambda written: written.failed,
            error=lambda reason: self._stopped(f"{GIVE_UP} prompts in a row failed, the last with {reason}"),
            workers=WORKERS,
            give_up=GIVE_UP,
            name="policy",
        )
        with closing(asking.in_order(prompts)) as completions:
            yield from completions

    def _written(self, parts: Sequence[ServedText | RequestFailed]) -> ServedCompletions:
        for part in parts:
            if isinstance(part, RequestFailed):
                if part.status is not None:
                    return ServedCompletions(failed=f"the policy's server answered {part}")
                raise self._stopped(str(part)) from part
        return ServedCompletions(tuple(part for part in parts if not isinstance(part, RequestFailed)))

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {reason}; what was measured is kept, run the same command "
            "again when it is back"
        )

    def _complete(self, key: str, messages: Messages, index: int, over: threading.Event) -> ServedText:
        """One completion; what was kept is not asked for again."""
        kept = self.kept.get(key, index)
        if kept is not None:
            return kept
        settings = STYLES[self.style](self.decoding, self.decoding.max_new_tokens, self.ends)
        seed = stream(self.seed, "sample", key, index) % 2**31
        answer = self.server.chat(self.name, messages, {**settings, "seed": seed}, over)
        name = self.server.name_in(answer)
        if name != self.served:
            raise StagealignError(
                f"policy {self.name!r}: the server named its model {self.served!r} and now {name!r}; "
                "samples of two policies are never mixed: name one exact version, and start again"
            )
        choice, text = answer["choices"][0], content_of(answer)
        if text is None and choice["message"].get("content") is not None:
            raise RequestFailed("something else than text", status=200)
        cut = choice.get("finish_reason") == "length"
        completion = ServedText(text or "", tokens_of(answer, "completion_tokens"), cut)
        self.kept.add(key, index, completion)
        return completion


def connect(name: str, url: str, decoding: Decoding, seed: int) -> ServedPolicy:
    """A served policy that has answered; its key comes from the environment (`server.POLICY_KEYS`).

    Raises StagealignError where the URL cannot be used, or the model does not answer there.
    """
    return ServedPolicy(name, Server(url, POLICY_KEYS, timeout=TIMEOUT), decoding, seed)
