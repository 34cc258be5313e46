"""Policy and prompts to candidates: batched sampling in which a seed gives the same text in any batch.

The start that all prompts share is prefilled once, and each prompt once for all its candidates. Prompts are sorted by
length; finished rows leave the batch. Each candidate has its own random stream, independent of the batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from transformers import AttentionInterface

from stagealign.base.errors import BadNumbers
from stagealign.data.records import Candidate, Prompt, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding
from stagealign.policy.draw import additive, choose, draws
from stagealign.policy.lm import LanguageModel, check_context, check_ends, end_ids, load, on_gpu
from stagealign.policy.logps import shared_prefix
from stagealign.policy.prefix_cache import ATTENTION, PrefixCache, shared_prefix_attention
from stagealign.store.artifact import Facts, Work

ROWS = 256
"""Candidates in one batch; execution, not identity."""
AttentionInterface.register(ATTENTION, shared_prefix_attention)


@dataclass(frozen=True)
class SampledIds:
    """One sampled completion: token ids without the end token, whether it ended, log-prob at temperature 1 in nats."""

    ids: tuple[int, ...]
    ended: bool
    logp: float


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = ROWS,
    names: Sequence[str] = (),
) -> list[list[SampledIds]]:
    """Completions of each prompt, one for each of its streams of draws.

    `prompts` are token ids; `uniforms[i][j]` holds `max_new_tokens` draws of candidate j of prompt i; `names` identify
    the prompts in errors. Raises BadNumbers, naming the prompt, if log-probs are not finite.
    """
    check_context(lm, max(map(len, prompts)), decoding.max_new_tokens)
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(ATTENTION)
    try:
        prefix = list(prompts[0][: shared_prefix([prompt[:-1] for prompt in prompts])])
        cache = _prefill_shared(lm, prefix)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        results: list[list[SampledIds]] = [[] for _ in prompts]
        width = max(1, rows // max(map(len, uniforms)))
        for start in range(0, len(order), width):
            batch = order[start : start + width]
            tails = [list(prompts[i][len(prefix) :]) for i in batch]
            for i, sampled in zip(
                batch, _batch(lm, cache, prefix, tails, [uniforms[i] for i in batch], decoding), strict=True
            ):
                results[i] = sampled
                if not all(isfinite(completion.logp) for completion in sampled):
                    name = names[i] if names else f"number {i + 1}"
                    raise BadNumbers(
                        f"sampling: the policy's log-probs are not finite for prompt {name}; look at its weights"
                    )
        return results
    finally:
        lm.model.set_attn_implementation(before)


def _prefill_shared(lm: LanguageModel, prefix: list[int]) -> PrefixCache:
    """A cache with the keys and values of the start that all prompts share; the start may be empty."""
    cache = PrefixCache(lm.model.config.num_hidden_layers)
    if prefix:
        lm.body(input_ids=torch.tensor([prefix], device=lm.model.device), past_key_values=cache, shared=cache)
    else:
        heads = getattr(lm.model.config, "num_key_value_heads", lm.model.config.num_attention_heads)
        width = (
            getattr(lm.model.config, "head_dim", None)
            or lm.model.config.hidden_size // lm.model.config.num_attention_heads
        )
        empty = torch.zeros(heads, 0, width, dtype=lm.model.dtype, device=lm.model.device)
        cache.prefix = [(empty, empty)] * cache.layers
    return cache


def _batch(
    lm: LanguageModel,
    cache: PrefixCache,
    prefix: list[int],
    tails: list[list[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
) -> list[list[SampledIds]]:
    """Completions of one batch of prompts that share `prefix`."""
    device = lm.model.device
    width = max(map(len, tails))
    cache.open_rows(width + decoding.max_new_tokens)
    hidden, pads = _prefill_tails(lm, cache, len(prefix), tails, width)
    owner = torch.tensor([i for i, streams in enumerate(uniforms) for _ in streams], device=device)
    cache.pick(owner)
    hidden, pads = hidden[owner], pads[owner]
    chance = torch.stack([draw for streams in uniforms for draw in streams]).to(device)
    ends = torch.tensor(end_ids(lm), device=device)
    alive = torch.arange(len(owner), device=device)
    ids: list[list[int]] = [[] for _ in owner]
    ended, logps = [False] * len(owner), [0.0] * len(owner)
    written: Tensor | None = None
    for step in range(decoding.max_new_tokens):
        logits = lm.head(hidden)
        if written is None and (decoding.presence_penalty or decoding.frequency_penalty):
            written = torch.zeros(logits.shape, device=device)
        token, logp = choose(logits, chance[alive, step], decoding, written)
        if written is not None:
            written.scatter_add_(1, token[:, None], torch.ones_like(token[:, None], dtype=written.dtype))
        over = torch.isin(token, ends)
        for row, new, log_prob, stop in zip(alive.tolist(), token.tolist(), logp.tolist(), over.tolist(), strict=True):
            logps[row] += log_prob
            ended[row] = stop
            if not stop:
                ids[row].append(new)
        if over.all() or step + 1 == decoding.max_new_tokens:
            break
        if over.any():
            going = (~over).nonzero()[:, 0]
            cache.pick(going)
            alive, token, pads = alive[going], token[going], pads[going]
            written = None if written is None else written[going]
        hidden = _step(lm, cache, len(prefix), token, pads)
    grouped: list[list[SampledIds]] = [[] for _ in tails]
    for i, row_ids, stop, total in zip(owner.tolist(), ids, ended, logps, strict=True):
        grouped[i].append(SampledIds(tuple(row_ids), stop, round(total, 3)))
    return grouped


def _prefill_tails(
    lm: LanguageModel, cache: PrefixCache, shared: int, tails: list[list[int]], width: int
) -> tuple[Tensor, Tensor]:
    """Last hidden state of each prompt, shape (B, d), and its left padding, shape (B,)."""
    device = lm.model.device
    ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails], device=device)
    pads = torch.tensor([width - len(tail) for tail in tails], device=device)
    columns = torch.arange(width, device=device)
    positions = (columns - pads[:, None]).clamp(min=0) + shared
    # A padded query attends to itself, so that no row of the softmax is empty.
    seen = (columns >= pads[:, None])[:, None] | torch.eye(width, dtype=torch.bool, device=device)
    seen = seen & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    out = lm.body(
        input_ids=ids, position_ids=positions, attention_mask=additive(seen, lm), past_key_values=cache, shared=cache
    )
    cache.filled = width
    return out.last_hidden_state[:, -1], pads


def _step(lm: LanguageModel, cache: PrefixCache, shared: int, token: Tensor, pads: Tensor) -> Tensor:
    """Last hidden state, shape (B, d), after one more token a row."""
    columns = torch.arange(cache.filled + 1, device=token.device)
    out = lm.body(
        input_ids=token[:, None],
        position_ids=(shared + cache.filled - pads)[:, None],
        attention_mask=additive((columns >= pads[:, None])[:, None], lm),
        past_key_values=cache,
        shared=cache,
    )
    cache.filled += 1
    hidden: Tensor = out.last_hidden_state[:, -1]
    return hidden


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
            candidates.append(Candidate(prompt.text, text, "on", j, cut, length, completion.ids, completion.logp))
    return candidates


def build(work: Work) -> Facts:
    """Builder of `candidates`: a policy's samples for the prompts of a file."""
    lm = on_gpu(load(work.inputs["policy"], dtype=work.params["dtype"]))
    check_ends(lm, str(work.inputs["policy"]))
    chosen = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    decoding = Decoding(**work.params["decoding"])
    candidates = sample(lm, chosen, decoding, work.params["count"], work.params["seed"])
    write_rows(work.out / "candidates.jsonl", candidates)
    return sampled_facts(candidates)
