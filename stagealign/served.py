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
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stagealign.atomic import append
from stagealign.errors import StagealignError
from stagealign.records import Candidate, asked_prompts, sampled_facts, write_rows
from stagealign.seals import SEAL, sealed, whole
from stagealign.server import FIRST_ATTEMPTS, POLICY_KEYS, RequestFailed, Server, content_of, tokens_of
from stagealign.spec import Decoding, Engine, fingerprint, stream
from stagealign.store import SCRATCH, Work, read_record

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
            row = whole(line)
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


NOWHERE = "no-such-policy"
LINKS = "served"
"""Folder of the store with a link to each policy that a server was asked for, named by its fingerprint."""


def engine(url: str, decoding: Decoding, home: Path) -> Engine:
    """The server as what samples cells: the way it takes the decoding, and its version where it tells one.

    Asks for a folder that is not there, as no policy may be built yet. Raises StagealignError where nothing answers,
    where nothing is understood, and where the server answers all the same: it would answer so for any policy.
    """
    server = Server(url, POLICY_KEYS, timeout=TIMEOUT)
    name, reason = str(home / LINKS / NOWHERE), ""
    for style, settings in STYLES.items():
        try:
            server.chat(name, [{"role": "user", "content": "Say yes."}], settings(decoding, 1), attempts=1)
        except RequestFailed as error:
            if error.status is None:
                raise StagealignError(f"--policy-url {server.url}: {error}; see that the server runs") from error
            reason = str(error)
            if error.status not in REFUSED:
                return Engine("served", server.version(), {"style": style})
            continue
        raise StagealignError(
            f"--policy-url {server.url}: it answered for {name}, a folder that is not there, so it does not load the "
            "model that a request names, and would answer for every policy with what it has loaded; use one that does: "
            "`transformers serve`"
        )
    raise StagealignError(
        f"--policy-url {server.url}: {reason}; use a server that loads the model that a request names by its folder: "
        "`transformers serve`"
    )


def build(work: Work) -> dict[str, Any]:
    """Builder of `candidates` by a server: samples of a policy on the prompts of a file; facts as of `sample.build`.

    A server gives texts. The token ids are those of the text read again, without log-probs; `recounted` tells of how
    many completions their number is not the server's. Seeds are sent, but whether a server heeds them is its own
    affair. All that it answered stands in the scratch as soon as it comes, so a build that was killed asks for the
    rest alone, and so does one that ends because prompts failed. Raises StagealignError.
    """
    from stagealign import lm

    url = work.devices.policy_url
    if url is None:
        raise StagealignError("samples of a served policy: no server is named; add --policy-url URL")
    folder, decoding = work.inputs["policy"], Decoding(**work.params["decoding"])
    shape = lm.load_shape(folder)
    lm.check_ends(shape, str(folder))
    if not shape.tokenizer.chat_template:
        raise StagealignError(
            f"policy {folder}: its tokenizer has no chat template, and a server puts one around every prompt; leave "
            "--policy-url out"
        )
    prompts = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    lm.check_context(shape, max(len(shape.prompt_ids(one.text)) for one in prompts), decoding.max_new_tokens)
    (work.out / SCRATCH).mkdir(exist_ok=True)
    kept = Answers(work.out / SCRATCH / "answers.jsonl")
    before, name = len(kept), str(named(folder, work.home))
    server = Server(url, POLICY_KEYS, timeout=TIMEOUT)
    style = work.params["engine"]["settings"]["style"]
    policy = ServedPolicy(name, server, decoding, work.params["seed"], style, lm.end_ids(shape), kept)
    if policy.served is not None and name not in policy.served:
        raise StagealignError(
            f"policy {name} at {server.url}: the server named its model {policy.served!r}; use one that loads the "
            "model that a request names: `transformers serve`"
        )
    count, candidates, failed, recounted = work.params["count"], list[Candidate](), list[str](), 0
    asked = [(one.hash, [{"role": "user", "content": one.text}]) for one in prompts]
    for prompt, written in zip(prompts, policy.write(asked, count), strict=True):
        if written.failed is not None:
            failed.append(f"{prompt.hash}: {written.failed}")
        for index, one in enumerate(written.texts):
            ids = tuple(shape.completion_ids(one.text, ended=False))
            recounted += one.tokens != len(ids) + (not one.cut)
            candidates.append(
                Candidate(prompt.text, one.text.strip(), "on", index, one.cut, len(ids) + (not one.cut), ids)
            )
    if failed:
        raise StagealignError(
            f"policy {name} at {server.url}: {len(failed)} of {len(prompts)} prompts failed, the first {failed[0]}; "
            "what was answered is kept, the same command asks for the others alone"
        )
    write_rows(work.out / "candidates.jsonl", candidates)
    return sampled_facts(candidates) | {"recounted": recounted, "kept": before, "served": policy.served}


def named(policy: Path, home: Path) -> Path:
    """The link by which a server is asked for a policy: its name is the fingerprint of what the folder holds."""
    record = read_record(policy)
    assert record is not None, policy
    link = home / LINKS / record["fingerprint"]
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(policy, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        new = link.with_name(f"{link.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return link
