"""Policy and prompts to candidates: batched sampling in which a seed gives the same text in any batch.

Chance comes from one stream a candidate, never from the batch.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from math import isfinite

from torch import Tensor

from stagealign.base.batching import SAMPLED_ROWS
from stagealign.base.errors import BadNumbers
from stagealign.data.records import Candidate, Prompt, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding
from stagealign.policy.context import check_fits, fitting, room
from stagealign.policy.draw import draws
from stagealign.policy.fast import fast_rows
from stagealign.policy.general import SINGLE, SampledIds, general_rows
from stagealign.policy.lm import LanguageModel, check_ends, load, on_gpu
from stagealign.policy.paths import path_of
from stagealign.store.artifact import Facts, Work

ROWS = SAMPLED_ROWS
"""Candidates in one batch at most; free memory may hold fewer. Execution, not identity."""


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = ROWS,
    names: Sequence[str] = (),
) -> list[list[SampledIds]]:
    """Completions of each prompt, one for each of its streams of draws.

    `prompts` are token ids; `uniforms[i][j]` holds `max_new_tokens` draws of candidate j of prompt i. A completion has
    at most the tokens that the model's context leaves. Raises BadData, naming the prompt, where it leaves none, and
    BadNumbers where log-probs are not finite.
    """
    if not prompts:
        return []
    names = names or [f"number {i + 1}" for i in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        check_fits(lm, name, len(prompt), decoding)
    results: list[list[SampledIds]] = [[] for _ in prompts]
    with closing(_sampled(lm, prompts, uniforms, decoding, rows)) as written:  # an error leaves the model as it was
        for i, sampled in written:
            results[i] = sampled
            if not all(isfinite(row.logp) for row in sampled):
                raise BadNumbers(
                    f"sampling: the policy's log-probs are not finite for prompt {names[i]}; look at its weights"
                )
    return results


def _sampled(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int,
) -> Generator[tuple[int, list[SampledIds]]]:
    """Candidates of each prompt by the path of the model; a text that is too long for a batch is sampled alone."""
    path = path_of(lm)
    longest = [len(prompt) + room(lm, len(prompt), decoding) for prompt in prompts]
    together = [i for i, tokens in enumerate(longest) if tokens <= path.longest]
    alone = [i for i, tokens in enumerate(longest) if tokens > path.longest]
    for places, fast, batches in ((together, path.fast, path.batches), (alone, False, SINGLE)):
        if not places:
            continue
        some, chance = [prompts[i] for i in places], [uniforms[i] for i in places]
        if fast:
            written = fast_rows(lm, some, chance, decoding, rows)
        else:
            written = general_rows(lm, some, chance, decoding, rows, batches)
        with closing(written):
            yield from ((places[i], sampled) for i, sampled in written)


def sample(
    lm: LanguageModel, prompts: Iterable[Prompt], decoding: Decoding, count: int, seed: int, rows: int = ROWS
) -> list[Candidate]:
    """`count` on-policy candidates of each prompt; a repeated prompt is sampled once."""
    unique = list({prompt.text: prompt for prompt in prompts}.values())
    ids = [lm.prompt_ids(prompt.text) for prompt in unique]
    uniforms = [[draws(seed, p.hash, j, decoding.max_new_tokens) for j in range(count)] for p in unique]
    texts = generate(lm, ids, uniforms, decoding, rows, names=[prompt.hash for prompt in unique])
    candidates = []
    for prompt, sampled in zip(unique, texts, strict=True):
        for j, completion in enumerate(sampled):
            text = lm.tokenizer.decode(list(completion.ids), skip_special_tokens=True).strip()
            cut, length = not completion.ended, len(completion.ids) + completion.ended
            sampled_ids, logp, end = completion.ids, completion.logp, completion.end
            candidates.append(Candidate(prompt.text, text, "on", j, cut, length, sampled_ids, logp, end))
    return candidates


def build(work: Work) -> Facts:
    """Builder of `candidates`: samples of a policy on the prompts of a file.

    Prompts that fill the policy's context are dropped; the facts count and name them.
    """
    lm = on_gpu(load(work.inputs["policy"], dtype=work.params["dtype"]))
    check_ends(lm, str(work.inputs["policy"]))
    chosen = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    decoding = Decoding(**work.params["decoding"])
    ids = {prompt.hash: lm.prompt_ids(prompt.text) for prompt in chosen}
    rooms = fitting(lm, ids, decoding, str(work.inputs["prompts"]), "part" in work.params)
    kept = [prompt for prompt in chosen if prompt.hash in rooms.most]
    candidates = sample(lm, kept, decoding, work.params["count"], work.params["seed"])
    write_rows(work.out / "candidates.jsonl", candidates)
    return {**sampled_facts(candidates), **rooms.facts, "path": path_of(lm).name}
