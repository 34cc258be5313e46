"""The fast path: batches of rows over one cache, whose prefix is stored once.

What all prompts share is prefilled once, each prompt once for all its candidates, and finished rows leave the batch.
`paths.py` says which models may take it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface

from stagealign.grid.spec import Decoding
from stagealign.policy.context import room
from stagealign.policy.draw import additive, choose
from stagealign.policy.general import SampledIds
from stagealign.policy.lm import LanguageModel, end_ids
from stagealign.policy.logps import shared_prefix
from stagealign.policy.prefix_cache import ATTENTION, PrefixCache, shared_prefix_attention

AttentionInterface.register(ATTENTION, shared_prefix_attention)


@torch.inference_mode()
def fast_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = 256,
) -> Iterator[tuple[int, list[SampledIds]]]:
    """(place of the prompt, its candidates), one for each of its streams of draws, longest prompts first."""
    with _our_attention(lm):
        prefix = list(prompts[0][: shared_prefix([prompt[:-1] for prompt in prompts])])
        cache = _prefill_shared(lm, prefix)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        width = max(1, rows // max(len(streams) for streams in uniforms))
        for start in range(0, len(order), width):
            places = order[start : start + width]
            tails = [list(prompts[i][len(prefix) :]) for i in places]
            yield from zip(
                places, _batch(lm, cache, prefix, tails, [uniforms[i] for i in places], decoding), strict=True
            )


@torch.inference_mode()
def fast_logits(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits after these tokens, shape (vocabulary,), half of them read as a shared prefix."""
    with _our_attention(lm):
        half = len(ids) // 2
        cache = _prefill_shared(lm, list(ids[:half]))
        cache.open_rows(len(ids) - half)
        logits, _ = _prefill_tails(lm, cache, half, [list(ids[half:])], len(ids) - half)
        return logits[0]


@contextmanager
def _our_attention(lm: LanguageModel) -> Iterator[None]:
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


def _prefill_shared(lm: LanguageModel, prefix: list[int]) -> PrefixCache:
    """A cache that holds the prefix; an empty one has no keys."""
    config = lm.model.config.get_text_config()
    cache = PrefixCache(config.num_hidden_layers)
    if prefix:
        ids = torch.tensor([prefix], device=lm.model.device)
        lm.model(input_ids=ids, past_key_values=cache, shared=cache, logits_to_keep=1)
    else:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
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
    logits, pads = _prefill_tails(lm, cache, len(prefix), tails, width)
    owner = torch.tensor([i for i, streams in enumerate(uniforms) for _ in streams], device=device)
    cache.pick(owner)
    logits, pads = logits[owner], pads[owner]
    chance = torch.stack([one for streams in uniforms for one in streams]).to(device)
    ends = torch.tensor(end_ids(lm), device=device)
    alive = torch.arange(len(owner), device=device)
    room_of = [room(lm, len(prefix) + len(tail), decoding) for tail in tails]
    left = torch.tensor([room_of[i] for i in owner.tolist()], device=device)
    ids: list[list[int]] = [[] for _ in owner]
    ended, logps = [False] * len(owner), [0.0] * len(owner)
    written: Tensor | None = None
    for step in range(int(left.max())):
        if written is None and (decoding.presence_penalty or decoding.frequency_penalty):
            written = torch.zeros(logits.shape, device=device)
        token, logp = choose(logits, chance[alive, step], decoding, written)
        if written is not None:
            written.scatter_add_(1, token[:, None], torch.ones_like(token[:, None], dtype=written.dtype))
        over = torch.isin(token, ends)
        for row, one, log_prob, stop in zip(alive.tolist(), token.tolist(), logp.tolist(), over.tolist(), strict=True):
            logps[row] += log_prob
            ended[row] = stop
            if not stop:
                ids[row].append(one)
        over |= left[alive] == step + 1
        if over.all():
            break
        if over.any():
            going = (~over).nonzero()[:, 0]
            cache.pick(going)
            alive, token, pads = alive[going], token[going], pads[going]
            written = None if written is None else written[going]
        logits = _step(lm, cache, len(prefix), token, pads)
    grouped: list[list[SampledIds]] = [[] for _ in tails]
    for i, row_ids, stop, total in zip(owner.tolist(), ids, ended, logps, strict=True):
        grouped[i].append(SampledIds(tuple(row_ids), stop, round(total, 3)))
    return grouped


def _prefill_tails(
    lm: LanguageModel, cache: PrefixCache, shared: int, tails: list[list[int]], width: int
) -> tuple[Tensor, Tensor]:
    """Logits after each prompt, shape (B, vocabulary), and its left padding, shape (B,)."""
    device = lm.model.device
    ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails], device=device)
    pads = torch.tensor([width - len(tail) for tail in tails], device=device)
    columns = torch.arange(width, device=device)
    positions = (columns - pads[:, None]).clamp(min=0) + shared
    # A padded query looks at itself, so that no row of the softmax is empty.
    seen = (columns >= pads[:, None])[:, None] | torch.eye(width, dtype=torch.bool, device=device)
    seen = seen & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    cache.queries = cache.positions = positions
    logits = _logits(lm, cache, ids, positions, additive(seen, lm))
    cache.filled = width
    return logits, pads


def _step(lm: LanguageModel, cache: PrefixCache, shared: int, token: Tensor, pads: Tensor) -> Tensor:
    """Logits, shape (B, vocabulary), after one more token a row."""
    columns = torch.arange(cache.filled + 1, device=token.device)
    cache.queries = (shared + cache.filled - pads)[:, None]
    cache.positions = shared + columns - pads[:, None]
    mask = additive((columns >= pads[:, None])[:, None], lm)
    logits = _logits(lm, cache, token[:, None], cache.queries, mask)
    cache.filled += 1
    return logits


def _logits(lm: LanguageModel, cache: PrefixCache, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Logits after the last of these tokens, shape (B, vocabulary), as the model gives them: scaled and capped."""
    out = lm.model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        shared=cache,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits
