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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint, stream
from stagealign.base.server import FIRST_ATTEMPTS, POLICY_KEYS, RequestFailed, Server, content_of, tokens_of
from stagealign.grid.spec import Decoding
from stagealign.store.checksums import SEAL, sealed, whole
from stagealign.store.files import append

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

    texts: tuple["Text", ...] = ()
    failed: str | None = None

    @property
    def completions(self) -> tuple[str, ...]:
        return tuple(one.text.strip() for one in self.texts)

    @property
    def tokens(self) -> int:
        """As the server counts them."""
        return sum(one.tokens for one in self.texts)

    @property
    def truncated(self) -> int:
        return sum(one.cut for one in self.texts)


@dataclass(frozen=True)
class Text:
    """One completion as it came."""

    text: str
    tokens: int
    """As the server counts them."""
    cut: bool
    """Ended at the token limit."""


class Answers:
    """Completions by prompt hash and index, each on disk as soon as it comes; safe to use from many threads."""

    def __init__(self, path: Path | None):
        """Reads what an earlier call kept; without a path nothing is kept."""
        self.path, self._found = path, dict[tuple[str, int], Text]()
        lines = path.read_bytes().splitlines(keepends=True) if path and path.exists() else []
        for line in lines:
            row: Any = whole(line)
            if row is not None and SEAL in row:
                self._found[row["key"], row["index"]] = Text(row["text"], row["tokens"], row["cut"])

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str, index: int) -> Text | None:
        return self._found.get((key, index))

    def add(self, key: str, index: int, text: Text) -> None:
        """Keeps a completion. Raises CannotRun where the disk does not take it."""
        if self.path:
            append(self.path, json.dumps(sealed({"key": key, "index": index, **asdict(text)})) + "\n")
            self._found[key, index] = text


def _top_k(decoding: Decoding, tokens: int) -> dict[str, Any]:
    return _plain(decoding, tokens) | {"top_k": decoding.top_k}


def _generation_config(decoding: Decoding, tokens: int) -> dict[str, Any]:
    """Raises StagealignError for penalties, which a generation config does not have."""
    if penalties(decoding):
        raise StagealignError(
            "this server is told the decoding by a generation config, which has no presence or frequency penalty; use "
            "one that takes the API's own fields and `top_k`, such as `vllm serve`"
        )
    sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config = sampled if decoding.temperature > 0 else {"do_sample": False}
    return {"generation_config": json.dumps(config | {"max_new_tokens": tokens}), "max_tokens": tokens}


def _plain(decoding: Decoding, tokens: int) -> dict[str, Any]:
    told = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": tokens}
    return told | penalties(decoding)


def penalties(decoding: Decoding) -> dict[str, float]:
    """The API's fields of the penalties; none where there are none, so that a server need not know them."""
    given = {"presence_penalty": decoding.presence_penalty, "frequency_penalty": decoding.frequency_penalty}
    return {name: value for name, value in given.items() if value}


Settings = Callable[[Decoding, int], dict[str, Any]]
STYLES: dict[str, Settings] = {
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

    def __init__(
        self,
        name: str,
        server: Server,
        decoding: Decoding,
        seed: int,
        style: str | None = None,
        ends: Sequence[int] = (),
        kept: Answers | None = None,
    ):
        """`style` where it is known already; `ends`: end tokens that a `generation_config` tells the server."""
        self.name, self.server, self.decoding, self.seed = name, server, decoding, seed
        self.ends, self.kept = list(ends), Answers(None) if kept is None else kept
        self.style, self.served = self._first(STYLES if style is None else {style: STYLES[style]})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this policy from another of the same name: what it says without chance."""
        said = self._ask(PROBE, _plain(Decoding(temperature=0.0), 16))
        text = content_of(said) or ""
        return {"served": self.name, "as": self.served, "style": self.style, "says": fingerprint({"text": text})}

    def _first(self, styles: Mapping[str, Settings]) -> tuple[str, str | None]:
        """The first of `styles` that the server takes, and the model's name as it gives it."""
        for style, settings in styles.items():
            try:
                answer = self._chat("Say yes.", settings(self.decoding, 1))
            except RequestFailed as error:
                if error.status in REFUSED and style != list(styles)[-1]:
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
        waiting: deque[list[Future[Text]]] = deque()
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

    def _written(self, futures: Sequence[Future[Text]]) -> Written:
        try:
            found = [future.result() for future in futures]
        except RequestFailed as error:
            if error.status is not None:
                return Written(failed=f"the policy's server answered {error}")
            raise self._stopped(str(error)) from error
        return Written(tuple(found))

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"policy {self.name!r} at {self.server.url}: {reason}; what was measured is kept, run the same command "
            "again when it is back"
        )

    def _complete(self, key: str, messages: Messages, index: int, stop: threading.Event) -> Text:
        """One completion; what was kept is not asked for again."""
        found = self.kept.get(key, index)
        if found is not None:
            return found
        seed = stream(self.seed, "sample", key, index) % 2**31
        settings = self._settings()
        answer = self.server.chat(self.name, messages, settings | {"seed": seed}, stop)
        if self._named(answer) != self.served:
            raise StagealignError(
                f"policy {self.name!r}: the server named its model {self.served!r} and now {self._named(answer)!r}; "
                "samples of two policies are never mixed: name one exact version, and start again"
            )
        choice, text = answer["choices"][0], content_of(answer)
        if text is None and choice["message"].get("content") is not None:
            raise RequestFailed("something else than text", status=200)
        cut = choice.get("finish_reason") == "length"
        found = Text(text or "", tokens_of(answer, "completion_tokens"), cut)
        self.kept.add(key, index, found)
        return found

    def _settings(self) -> dict[str, Any]:
        """The decoding as the server takes it, with the policy's own end tokens where it can be told them."""
        settings = STYLES[self.style](self.decoding, self.decoding.max_new_tokens)
        if self.ends and "generation_config" in settings:
            config = json.loads(settings["generation_config"]) | {
                "eos_token_id": self.ends,
                "pad_token_id": self.ends[0],
            }
            settings["generation_config"] = json.dumps(config)
        return settings


def connect(name: str, url: str, decoding: Decoding, seed: int) -> ServedPolicy:
    """A served policy that has answered; its key comes from the environment (`server.POLICY_KEYS`).

    Raises StagealignError where the URL cannot be used, or the model does not answer there.
    """
    return ServedPolicy(name, Server(url, POLICY_KEYS, timeout=TIMEOUT), decoding, seed)
