"""Samples of a cell's policies by a server."""

import os
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError
from stagealign.base.server import POLICY_KEYS, RequestFailed, Server
from stagealign.data.records import Candidate, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding, Engine
from stagealign.policy.served import REFUSED, STYLES, TIMEOUT, Answers, ServedPolicy
from stagealign.store.artifact import Work
from stagealign.store.folder import SCRATCH
from stagealign.store.record import read_record

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
    from stagealign.policy import lm

    url = work.context.policy_url
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
