"""The fast path: batches of rows over one cache, whose prefix is stored once.

What all prompts share is prefilled once, each prompt once for all its candidates, and finished rows leave the batch.
`paths.py` says which models may take it.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface

from stagealign.grid.spec import Decoding
from stagealign.policy.batch_rows import Row, RowBatches, batch_row, rows_within
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
) -> Generator[tuple[int, list[SampledIds]]]:
    """Yields (place of the prompt, its candidates), one for each of its streams of draws, longest prompts first."""
    count = max(len(streams) for streams in uniforms)
    results: list[list[SampledIds]] = [[] for _ in prompts]
    with _our_attention(lm):
        prefix = list(prompts[0][: shared_prefix([prompt[:-1] for prompt in prompts])])
        cache = _prefill_shared(lm, prefix)

        def most(row: Row) -> int:
            """Rows of a batch whose first prompt, its longest, is that of `row`."""
            length, new = len(prompts[row[0]]), room(lm, len(prompts[row[0]]), decoding)
            return rows_within(lm, batch_row(len(prefix), length, new, count, decoding), rows)

        def sample(batch: Sequence[Row]) -> list[list[SampledIds]]:
            places = list(dict.fromkeys(place for place, _ in batch))
            tails = [list(prompts[place][len(prefix) :]) for place in places]
            chance = [[uniforms[place][j] for owner, j in batch if owner == place] for place in places]
            try:
                return _batch(lm, cache, prefix, tails, chance, decoding)
            finally:
                cache.open_rows(0)

        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        units = [(place, j) for place in order for j in range(len(uniforms[place]))]
        for batch, sampled in RowBatches().run(units, most, sample):
            for place, found in zip(dict.fromkeys(place for place, _ in batch), sampled, strict=True):
                results[place] += found
                if len(results[place]) == len(uniforms[place]):
                    yield place, results[place]


@torch.inference_mode()
def fast_logits(
    lm: LanguageModel, prefix: Sequence[int], tails: Sequence[Sequence[int]], given: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Logits after each prompt and after each token of its continuation but the last, shape (B, steps, vocabulary).

    A prompt is `prefix` and its tail; `given` has its continuation, and none stands for one step. The rows change their
    order after the first step, as they do when a prompt has several candidates.
    """
    steps, width = max(1, *map(len, given), 0) if given else 1, max(map(len, tails))
    with _our_attention(lm):
        cache = _prefill_shared(lm, list(prefix))
        cache.open_rows(width + steps)
        logits, pads = _prefill_tails(lm, cache, len(prefix), [list(tail) for tail in tails], width)
        rows = torch.arange(len(tails) - 1, -1, -1, device=lm.model.device)
        cache.pick(rows)
        found, pads = [logits[rows]], pads[rows]
        for step in range(steps - 1):
            token = torch.tensor([ids[step] for ids in given], device=lm.model.device)[rows]
            found.append(_step(lm, cache, len(prefix), token, pads))
        return torch.stack(found, 1)[rows]


@contextmanager
def _our_attention(lm: LanguageModel) -> Iterator[None]:
    """Our attention in each part of the model; afterwards each has its own again."""
    configs = {id(part.config): part.config for part in lm.model.modules() if hasattr(part, "config")}
    before = {place: getattr(config, "_attn_implementation", None) for place, config in configs.items()}
    lm.model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        for place, config in configs.items():
            if before[place] is not None:
                config._attn_implementation = before[place]


def _prefill_shared(lm: LanguageModel, prefix: list[int]) -> PrefixCache:
    """A cache with the keys and values of the start that all prompts share; the start may be empty."""
    cache = PrefixCache()
    if prefix:
        ids = torch.tensor([prefix], device=lm.model.device)
        cache.tokens = len(prefix)
        lm.model(input_ids=ids, past_key_values=cache, shared=cache, logits_to_keep=1)
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
    last: list[list[int]] = [[] for _ in owner]
    logps = [0.0] * len(owner)
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
            (last if stop else ids)[row].append(one)
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
    for i, row_ids, end, total in zip(owner.tolist(), ids, last, logps, strict=True):
        grouped[i].append(SampledIds(tuple(row_ids), bool(end), round(total, 3), next(iter(end), None)))
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
    cache.read(positions, positions, shared + width)
    logits = _logits(lm, cache, ids, additive(seen, lm))
    cache.filled = width
    return logits, pads


def _step(lm: LanguageModel, cache: PrefixCache, shared: int, token: Tensor, pads: Tensor) -> Tensor:
    """Logits, shape (B, vocabulary), after one more token a row."""
    columns = torch.arange(cache.filled + 1, device=token.device)
    positions = shared + columns - pads[:, None]
    cache.read(positions[:, -1:], positions, shared + cache.filled + 1)
    logits = _logits(lm, cache, token[:, None], additive((columns >= pads[:, None])[:, None], lm))
    cache.filled += 1
    return logits


def _logits(lm: LanguageModel, cache: PrefixCache, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits after the last of these tokens, shape (B, vocabulary), as the model gives them: scaled and capped."""
    out = lm.model(
        input_ids=ids,
        position_ids=cache.queries,
        attention_mask=mask,
        past_key_values=cache,
        shared=cache,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits
