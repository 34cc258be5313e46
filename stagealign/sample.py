"""Policy and prompts to candidates: batched sampling in which a seed gives the same text in any batch.

What all prompts share is prefilled once, each prompt once for all its candidates, prompts are sorted by length, and
finished rows leave the batch. Chance comes from one stream a candidate, never from the batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from stagealign.errors import BadNumbers
from stagealign.lm import LanguageModel, check_context, check_ends, end_ids, load, on_gpu
from stagealign.logps import shared_prefix
from stagealign.records import Candidate, Prompt, asked_prompts, sampled_facts, write_rows
from stagealign.spec import Decoding, stream
from stagealign.store import Work

ATTENTION = "stagealign_shared_prefix"
ROWS = 256
"""Candidates in one batch; execution, not identity."""


class PrefixCache:
    """Keys and values of a prefix that every row shares, once, and of each row's own tokens."""

    def __init__(self, layers: int):
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.layers = layers
        self.filled = 0
        self.capacity = 0

    def open_rows(self, capacity: int) -> None:
        """Starts the rows' own part with room for `capacity` tokens."""
        self.keys, self.values, self.filled, self.capacity = [], [], 0, capacity

    def get_seq_length(self, layer: int = 0) -> int:
        return self.filled

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """The layer's keys and values so far, shape (B, heads, tokens, d); called by the model."""
        if not self.capacity:
            self.prefix.append((keys[0].clone(), values[0].clone()))
            return keys, values
        if layer == len(self.keys):
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.keys.append(keys.new_empty(shape))
            self.values.append(values.new_empty(shape))
        end = self.filled + keys.shape[2]
        self.keys[layer][:, :, self.filled : end] = keys
        self.values[layer][:, :, self.filled : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def pick(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may be named more than once."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: PrefixCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over a prefix stored once and over each row's own keys, shape (B, S, heads, d).

    Grouped heads share their keys without a copy; `attention_mask` is additive, shape (B, 1, S, row tokens).
    """
    batch, heads, steps, width = query.shape
    groups = heads // key.shape[1]
    if shared is None or not shared.capacity:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None
    prefix_key, prefix_value = shared.prefix[int(module.layer_idx)]  # type: ignore[arg-type]
    kv, length = prefix_key.shape[:2]
    grouped = (query * scaling).reshape(batch, kv, groups * steps, width)
    by_head = grouped.transpose(0, 1).reshape(kv, -1, width)
    to_prefix = (by_head @ prefix_key.transpose(1, 2)).view(kv, batch, groups * steps, length).transpose(0, 1)
    own = grouped @ key.transpose(2, 3) + attention_mask.repeat(1, 1, groups, 1)  # type: ignore[union-attr]
    weights = torch.cat([to_prefix, own], -1).softmax(-1)
    on_prefix = weights[..., :length].transpose(0, 1).reshape(kv, batch * groups * steps, length) @ prefix_value
    out = on_prefix.view(kv, batch, groups * steps, width).transpose(0, 1) + weights[..., length:] @ value
    return out.reshape(batch, heads, steps, width).transpose(1, 2), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)


@dataclass(frozen=True)
class Sampled:
    """One sampled completion: token ids without the end token, whether it ended, log-prob at temperature 1 in nats."""

    ids: tuple[int, ...]
    ended: bool
    logp: float


def draws(seed: int, prompt_hash: str, index: int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) that belong to one candidate, whatever its batch."""
    generator = torch.Generator().manual_seed(stream(seed, "sample", prompt_hash, index))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def penalised(logits: Tensor, written: Tensor, decoding: Decoding) -> Tensor:
    """Logits (B, vocabulary) less what `decoding` takes off for tokens that a completion holds already.

    `written` counts them, same shape. Source: vLLM's and OpenAI's presence and frequency penalties.
    """
    return logits - decoding.frequency_penalty * written - decoding.presence_penalty * (written > 0)


def choose(logits: Tensor, uniform: Tensor, decoding: Decoding, written: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Next token ids, shape (B,), and their log-probs at temperature 1, from logits (B, vocabulary) and draws (B,).

    Penalties first, for `written` as in `penalised`; then top-k, then top-p among the k, as in transformers: the
    smallest set whose mass reaches top_p; temperature 0 is greedy. Log-probs are without penalties.
    """
    logits = logits.float()
    asked = logits if written is None else penalised(logits, written, decoding)
    if decoding.temperature == 0:
        token = asked.argmax(-1)
    else:
        top, ids = asked.topk(min(decoding.top_k, logits.shape[-1]), dim=-1)
        probs = (top / decoding.temperature).double().softmax(-1)
        mass = probs.cumsum(-1)
        mass = torch.where(mass - probs < decoding.top_p, probs, 0.0).cumsum(-1)
        place = (mass <= uniform[:, None] * mass[:, -1:]).sum(-1).clamp(max=top.shape[-1] - 1)
        token = ids.gather(1, place[:, None])[:, 0]
    logp = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return token, logp


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = ROWS,
    done: Callable[[int], None] = lambda count: None,
    names: Sequence[str] = (),
) -> list[list[Sampled]]:
    """Completions of each prompt, one for each of its streams of draws.

    `prompts` are token ids; `uniforms[i][j]` holds `max_new_tokens` draws of candidate j of prompt i; `done` is told
    how many candidates a finished batch had. Raises BadNumbers, naming the prompt, where log-probs are not finite.
    """
    check_context(lm, max(map(len, prompts)), decoding.max_new_tokens)
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(ATTENTION)
    try:
        prefix = list(prompts[0][: shared_prefix([prompt[:-1] for prompt in prompts])])
        cache = _prefill_shared(lm, prefix)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        results: list[list[Sampled]] = [[] for _ in prompts]
        width = max(1, rows // max(len(one) for one in uniforms))
        for start in range(0, len(order), width):
            batch = order[start : start + width]
            tails = [list(prompts[i][len(prefix) :]) for i in batch]
            for i, sampled in zip(
                batch, _batch(lm, cache, prefix, tails, [uniforms[i] for i in batch], decoding), strict=True
            ):
                results[i] = sampled
                if not all(isfinite(one.logp) for one in sampled):
                    name = names[i] if names else f"number {i + 1}"
                    raise BadNumbers(
                        f"sampling: the policy's log-probs are not finite for prompt {name}; look at its weights"
                    )
            done(sum(len(uniforms[i]) for i in batch))
        return results
    finally:
        lm.model.set_attn_implementation(before)


def _prefill_shared(lm: LanguageModel, prefix: list[int]) -> PrefixCache:
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
) -> list[list[Sampled]]:
    """Completions of one batch of prompts that share `prefix`."""
    device = lm.model.device
    width = max(map(len, tails))
    cache.open_rows(width + decoding.max_new_tokens)
    hidden, pads = _prefill_tails(lm, cache, len(prefix), tails, width)
    owner = torch.tensor([i for i, streams in enumerate(uniforms) for _ in streams], device=device)
    cache.pick(owner)
    hidden, pads = hidden[owner], pads[owner]
    chance = torch.stack([one for streams in uniforms for one in streams]).to(device)
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
        for row, one, log_prob, stop in zip(alive.tolist(), token.tolist(), logp.tolist(), over.tolist(), strict=True):
            logps[row] += log_prob
            ended[row] = stop
            if not stop:
                ids[row].append(one)
        if over.all() or step + 1 == decoding.max_new_tokens:
            break
        if over.any():
            going = (~over).nonzero()[:, 0]
            cache.pick(going)
            alive, token, pads = alive[going], token[going], pads[going]
            written = None if written is None else written[going]
        hidden = _step(lm, cache, len(prefix), token, pads)
    grouped: list[list[Sampled]] = [[] for _ in tails]
    for i, row_ids, stop, total in zip(owner.tolist(), ids, ended, logps, strict=True):
        grouped[i].append(Sampled(tuple(row_ids), stop, round(total, 3)))
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
    # A padded query looks at itself, so that no row of the softmax is empty.
    seen = (columns >= pads[:, None])[:, None] | torch.eye(width, dtype=torch.bool, device=device)
    seen = seen & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    out = lm.body(
        input_ids=ids, position_ids=positions, attention_mask=_additive(seen, lm), past_key_values=cache, shared=cache
    )
    cache.filled = width
    return out.last_hidden_state[:, -1], pads


def _step(lm: LanguageModel, cache: PrefixCache, shared: int, token: Tensor, pads: Tensor) -> Tensor:
    """Last hidden state, shape (B, d), after one more token a row."""
    columns = torch.arange(cache.filled + 1, device=token.device)
    out = lm.body(
        input_ids=token[:, None],
        position_ids=(shared + cache.filled - pads)[:, None],
        attention_mask=_additive((columns >= pads[:, None])[:, None], lm),
        past_key_values=cache,
        shared=cache,
    )
    cache.filled += 1
    hidden: Tensor = out.last_hidden_state[:, -1]
    return hidden


def _additive(seen: Tensor, lm: LanguageModel) -> Tensor:
    """0 where `seen`, minus infinity elsewhere, shape (B, 1, S, T)."""
    return torch.zeros(seen.shape, dtype=lm.model.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]


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
        for j, one in enumerate(sampled):
            text = lm.tokenizer.decode(list(one.ids), skip_special_tokens=True).strip()
            candidates.append(
                Candidate(prompt.text, text, "on", j, not one.ended, len(one.ids) + one.ended, one.ids, one.logp)
            )
    return candidates


def build(work: Work) -> dict[str, Any]:
    """Builder of `candidates`: samples of a policy on the prompts of a file."""
    lm = on_gpu(load(work.inputs["policy"], dtype=work.params["dtype"]))
    check_ends(lm, str(work.inputs["policy"]))
    chosen = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    decoding = Decoding(**work.params["decoding"])
    candidates = sample(lm, chosen, decoding, work.params["count"], work.params["seed"])
    write_rows(work.out / "candidates.jsonl", candidates)
    return sampled_facts(candidates)
