"""Samples of a cell's policies by a server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stagealign.base.errors import StagealignError
from stagealign.base.server import POLICY_KEYS, RequestFailed, Server
from stagealign.data.records import Candidate, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding, Engine
from stagealign.policy.served import REFUSED, STYLES, TIMEOUT, KeptCompletions, Manner, ServedPolicy, ServedText
from stagealign.store.artifact import Facts, Work
from stagealign.store.folder import SCRATCH
from stagealign.store.record import read_record

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel

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


def build(work: Work) -> Facts:
    """Builder of `candidates` by a server: samples of a policy on the prompts of a file; facts as of `sample.build`.

    A server gives texts. The token ids are those of the text read again, without log-probs; `recounted` is the number
    of completions whose count is not the server's. Seeds are sent; whether a server heeds them is its own affair. Each
    answer stands in the scratch as soon as it comes, so that a build that was killed asks for the rest alone, and so
    does one that ends because prompts failed. Raises StagealignError.
    """
    from stagealign.policy import lm

    if work.context.policy_url is None:
        raise StagealignError("samples of a served policy: no server is named; add --policy-url URL")
    decoding, shape = Decoding(**work.params["decoding"]), lm.load_shape(work.inputs["policy"])
    _check(work.inputs["policy"], shape)
    prompts = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    lm.check_context(shape, max(len(shape.prompt_ids(one.text)) for one in prompts), decoding.max_new_tokens)
    (work.out / SCRATCH).mkdir(exist_ok=True)
    kept = KeptCompletions(work.out / SCRATCH / "answers.jsonl")
    before, manner = len(kept), Manner(work.params["engine"]["settings"]["style"], tuple(lm.end_ids(shape)))
    policy = _opened(work, manner, kept)
    asked = [(one.hash, [{"role": "user", "content": one.text}]) for one in prompts]
    written = list(policy.write(asked, work.params["count"]))
    failed = [f"{prompt.hash}: {one.failed}" for prompt, one in zip(prompts, written, strict=True) if one.failed]
    if failed:
        raise StagealignError(
            f"policy {policy.name} at {policy.server.url}: {len(failed)} of {len(prompts)} prompts failed, the first "
            f"{failed[0]}; what was answered is kept, the same command asks for the others alone"
        )
    candidates = [
        _candidate(prompt.text, index, text, shape)
        for prompt, one in zip(prompts, written, strict=True)
        for index, text in enumerate(one.texts)
    ]
    texts = [text for one in written for text in one.texts]
    recounted = sum(text.tokens != one.tokens for text, one in zip(texts, candidates, strict=True))
    write_rows(work.out / "candidates.jsonl", candidates)
    return {**sampled_facts(candidates), "recounted": recounted, "kept": before, "served": policy.served}


def _check(folder: Path, shape: "LanguageModel") -> None:
    """Raises StagealignError for a policy that a server would ask otherwise than its training did."""
    from stagealign.policy import lm

    lm.check_ends(shape, str(folder))
    if not shape.tokenizer.chat_template:
        raise StagealignError(
            f"policy {folder}: its tokenizer has no chat template, and a server puts one around every prompt; leave "
            "--policy-url out"
        )


def _opened(work: Work, manner: Manner, kept: KeptCompletions) -> ServedPolicy:
    """The policy as its server has loaded it. Raises StagealignError if the server has loaded another."""
    url, name = work.context.policy_url, str(named(work.inputs["policy"], work.home))
    assert url is not None
    server = Server(url, POLICY_KEYS, timeout=TIMEOUT)
    policy = ServedPolicy(name, server, Decoding(**work.params["decoding"]), work.params["seed"], manner, kept)
    if policy.served is not None and name not in policy.served:
        raise StagealignError(
            f"policy {name} at {server.url}: the server named its model {policy.served!r}; use one that loads the "
            "model that a request names: `transformers serve`"
        )
    return policy


def _candidate(prompt: str, index: int, text: ServedText, shape: "LanguageModel") -> Candidate:
    """A completion with the tokens of its text, and the end token counted if it ended."""
    ids = tuple(shape.completion_ids(text.text, ended=False))
    return Candidate(prompt, text.text.strip(), "on", index, text.cut, len(ids) + (not text.cut), ids)


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
