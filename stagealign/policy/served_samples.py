"""Samples of a cell's policies by a server.

The server must load the model that a request names. Each policy is requested by a link whose name is the policy's
fingerprint, so that a server never answers with a model that it loaded from the same path before.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stagealign.base.errors import StagealignError
from stagealign.base.server import POLICY_KEYS, RequestFailed, Server
from stagealign.data.records import Candidate, Prompt, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding, Engine
from stagealign.policy.served import REFUSED, STYLES, TIMEOUT, Manner, ServedPolicy
from stagealign.policy.served_texts import KeptCompletions, ServedCompletions, ServedText
from stagealign.store.artifact import Facts, Work
from stagealign.store.folder import SCRATCH
from stagealign.store.record import read_record

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel

NOWHERE = "no-such-policy"
LINKS = "served"
"""Folder of the store with links to the policies that a server was asked for, named by fingerprint."""


def engine(url: str, decoding: Decoding, home: Path) -> Engine:
    """The server as a sampler of cells: the style in which it takes the decoding, and its version if it gives one.

    Asks for a folder that does not exist, as no policy may be built yet. Raises StagealignError if nothing answers, if
    no style is accepted, or if the server answers for the missing folder, as it would then for any policy.
    """
    server = Server(url, POLICY_KEYS, timeout=TIMEOUT)
    name, reason = str(home / LINKS / NOWHERE), ""
    for style, settings in STYLES.items():
        try:
            server.chat(name, [{"role": "user", "content": "Say yes."}], settings(decoding, 1), attempts=1)
        except RequestFailed as error:
            if error.status is None:
                raise StagealignError(f"--policy-url {server.url}: {error}; check that the server runs") from error
            reason = str(error)
            if error.status not in REFUSED:
                return Engine("served", server.version(), {"style": style})
            continue
        raise StagealignError(
            f"--policy-url {server.url}: it answered for {name}, a folder that does not exist, so it does not load the "
            "model that a request names; use a server that does: `transformers serve`"
        )
    raise StagealignError(
        f"--policy-url {server.url}: {reason}; use a server that loads the model that a request names by its folder: "
        "`transformers serve`"
    )


def build(work: Work) -> Facts:
    """Builder of `candidates` by a server: a policy's samples for the prompts of a file; facts as in `sample.build`.

    A server returns texts. Token ids come from tokenizing prompt and text together, without log-probs; `retokenised` is
    their number, `recounted` that of completions whose number of tokens differs from the server's count. Seeds are
    sent, but a server may ignore them.
    Answers are written to the scratch folder as they arrive: a build that was killed, or that ended because prompts
    failed, asks only for the rest when it runs again. Raises StagealignError.
    """
    from stagealign.policy import lm
    from stagealign.policy.context import fitting

    if work.context.policy_url is None:
        raise StagealignError("samples of a served policy: no server is named; add --policy-url URL")
    decoding, shape = Decoding(**work.params["decoding"]), lm.load_shape(work.inputs["policy"])
    _check(work.inputs["policy"], shape)
    prompts = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    ids = {prompt.hash: shape.prompt_ids(prompt.text) for prompt in prompts}
    rooms = fitting(shape, ids, decoding, str(work.inputs["prompts"]), "part" in work.params)
    prompts = [prompt for prompt in prompts if prompt.hash in rooms.most]
    (work.out / SCRATCH).mkdir(exist_ok=True)
    kept = KeptCompletions(work.out / SCRATCH / "answers.jsonl")
    before, manner = len(kept), Manner(work.params["engine"]["settings"]["style"], tuple(lm.end_ids(shape)))
    policy = _opened(work, manner, kept)
    asked = [(prompt.hash, [{"role": "user", "content": prompt.text}]) for prompt in prompts]
    answered = list(zip(prompts, policy.write(asked, work.params["count"], rooms.most), strict=True))
    texts = _texts(policy, answered)
    candidates = [
        _candidate(prompt.text, index, text, shape)
        for prompt, answer in answered
        for index, text in enumerate(answer.texts)
    ]
    recounted = sum(text.tokens != candidate.tokens for text, candidate in zip(texts, candidates, strict=True))
    write_rows(work.out / "candidates.jsonl", candidates)
    return {
        **sampled_facts(candidates),
        **rooms.facts,
        "retokenised": len(candidates),
        "recounted": recounted,
        "kept": before,
        "served": policy.served,
    }


def _texts(policy: ServedPolicy, answered: Sequence[tuple[Prompt, ServedCompletions]]) -> list[ServedText]:
    """All texts, in order. Raises StagealignError if a prompt failed, or the server took reasoning off a text."""
    failed = [f"{prompt.hash}: {answer.failed}" for prompt, answer in answered if answer.failed]
    if failed:
        raise StagealignError(
            f"policy {policy.name} at {policy.server.url}: {len(failed)} of {len(answered)} prompts failed, the first "
            f"{failed[0]}; answers so far are kept; the same command asks for the other prompts only"
        )
    texts = [text for _, answer in answered for text in answer.texts]
    if any(text.apart for text in texts):
        raise StagealignError(
            f"policy {policy.name} at {policy.server.url}: the server takes reasoning off what the policy writes, so "
            "that its tokens are not known; start the server without a reasoning parser"
        )
    return texts


def _check(folder: Path, shape: "LanguageModel") -> None:
    """Raises StagealignError for a policy whose prompts a server would format differently than training does."""
    from stagealign.policy import lm

    lm.check_ends(shape, str(folder))
    if not shape.tokenizer.chat_template:
        raise StagealignError(
            f"policy {folder}: its tokenizer has no chat template, and a server puts one around every prompt; leave "
            "--policy-url out"
        )


def _opened(work: Work, manner: Manner, kept: KeptCompletions) -> ServedPolicy:
    """The policy on its server. Raises StagealignError if the server answers with another model."""
    url, name = work.context.policy_url, str(named(work.inputs["policy"], work.home))
    assert url is not None
    server = Server(url, POLICY_KEYS, timeout=TIMEOUT)
    policy = ServedPolicy(name, server, Decoding(**work.params["decoding"]), work.params["seed"], manner, kept)
    if policy.served is not None and name not in policy.served:
        raise StagealignError(
            f"policy {name} at {server.url}: the server named its model {policy.served!r}; use a server that loads "
            "the model that a request names: `transformers serve`"
        )
    return policy


def _candidate(prompt: str, index: int, text: ServedText, shape: "LanguageModel") -> Candidate:
    """A candidate with the token ids of its text after its prompt; `tokens` counts the end token if it ended."""
    ids = tuple(shape.completion_ids(text.text, ended=False, prompt=prompt))
    end = None if text.cut else shape.end
    return Candidate(prompt, text.text.strip(), "on", index, text.cut, len(ids) + (not text.cut), ids, end=end)


def named(policy: Path, home: Path) -> Path:
    """Link to a policy, named by the fingerprint of its folder, by which a server is asked for it; creates the link."""
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
