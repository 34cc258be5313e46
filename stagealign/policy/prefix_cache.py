"""Keys and values of a prefix that rows share, and the attention over them: windows, caps and sinks included."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagealign.base.batching import GROWTH
from stagealign.base.errors import StagealignError

ATTENTION = "stagealign_shared_prefix"
UNKNOWN = ("position_bias", "cache", "alibi", "block_table")
"""Arguments that transformers may give an attention, and that this one does not compute."""


class PrefixCache:
    """Keys and values of a prefix that all rows share, stored once, and of each row's own tokens."""

    def __init__(self) -> None:
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values by layer, shape (heads, tokens, d); empty without a shared prefix."""
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.filled = 0
        self.capacity = 0
        self.tokens = 0
        """Longest row so far in tokens, prefix and tokens that are read now included."""
        self.queries = torch.empty(0)
        """Positions of the tokens that are read now, shape (B, S)."""
        self.positions = torch.empty(0)
        """Positions of the rows' own tokens so far, those that are read now included, shape (B, T)."""

    def open_rows(self, capacity: int) -> None:
        """Starts the rows' own part, which grows as needed, up to `capacity` tokens; 0 frees it."""
        self.keys, self.values, self.filled, self.capacity = [], [], 0, capacity

    def read(self, queries: Tensor, positions: Tensor, tokens: int) -> None:
        """Tells the attention which positions the next tokens have; see the attributes of the same names."""
        self.queries, self.positions, self.tokens = queries, positions, tokens

    def get_seq_length(self, layer: int = 0) -> int:
        return self.filled

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """The layer's keys and values so far, shape (B, heads, tokens, d); called by the model."""
        if not self.capacity:
            self.prefix[layer] = (keys[0].clone(), values[0].clone())
            return keys, values
        return self._added(self.keys, keys, layer), self._added(self.values, values, layer)

    def _added(self, held: list[Tensor], new: Tensor, layer: int) -> Tensor:
        """All tokens of a layer with the new ones at their end; the layer's tensor grows if it is full."""
        end = self.filled + new.shape[2]
        if layer == len(held):
            held.append(new.new_empty((*new.shape[:2], end, new.shape[3])))
        elif end > held[layer].shape[2]:
            grown = new.new_empty((*new.shape[:2], min(self.capacity, end + GROWTH - 1), new.shape[3]))
            grown[:, :, : self.filled] = held[layer][:, :, : self.filled]
            held[layer] = grown
        held[layer][:, :, self.filled : end] = new
        return held[layer][:, :, :end]

    def pick(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may be repeated. One tensor at a time is held twice."""
        for held in (self.keys, self.values):
            for layer in range(len(held)):
                held[layer] = held[layer][rows]


@dataclass(frozen=True)
class ScoreRules:
    """What a layer does to its attention scores beside scaling them; None if it does not."""

    window: int | None = None
    """A query sees the keys less than this many positions before it."""
    cap: float | None = None
    """Scores become cap * tanh(scores / cap)."""
    sinks: Tensor | None = None
    """A logit a head that takes part in the softmax and has no value, shape (heads,)."""

    @property
    def none(self) -> bool:
        """Whether scores are only scaled."""
        return self.window is None and self.cap is None and self.sinks is None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores under the cap, any shape."""
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def in_window(self, scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, heads, groups x S, T), minus infinity out of the window; positions (B, S) and (B, T) or (T,)."""
        if self.window is None:
            return scores
        far = keys[..., None, :] <= queries[..., :, None] - self.window
        return scores.masked_fill(far[:, None].repeat(1, 1, scores.shape[2] // far.shape[1], 1), float("-inf"))

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, shape (B, heads, S, T)."""
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


def shared_prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attention over a prefix stored once and over each row's own keys, shape (B, S, heads, d).

    `attention_mask` is additive, shape (B, 1, S, row tokens). Of the named arguments that transformers passes, it uses
    `scaling`, `sliding_window`, `softcap`, `s_aux` (sinks) and `shared`, the PrefixCache of the batch. Raises
    StagealignError if the model does not pass the cache on, or asks for what is not computed here: such a model takes
    the general path.
    """
    cache: PrefixCache | None = given.get("shared")
    if cache is None:
        raise StagealignError(f"{type(module).__name__} passes no cache on to its attention")
    asked = [name for name in UNKNOWN if given.get(name) is not None]
    if asked or given.get("is_causal") is False:
        raise StagealignError(f"{type(module).__name__} asks its attention for {asked or 'tokens to come'}")
    scaling = given.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = given.get("sliding_window")
    # A window that holds all tokens masks nothing.
    window = window if window and cache.tokens > window else None
    rules = ScoreRules(window, given.get("softcap") or None, given.get("s_aux"))
    if not cache.capacity:
        return _causal(query, key, value, scaling, rules), None
    assert attention_mask is not None
    own = (key, value, attention_mask)
    return _over_prefix(query * scaling, own, cache, cache.prefix.get(int(module.layer_idx)), rules), None  # type: ignore[arg-type]


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float, rules: ScoreRules) -> Tensor:
    """Causal attention of the prefix alone, shape (1, S, heads, d)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if rules.none:
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous()
    places = torch.arange(query.shape[2], device=query.device)
    scores = rules.capped(query @ key.transpose(2, 3) * scaling)
    scores = scores.masked_fill(places[None, :] > places[:, None], float("-inf"))
    scores = rules.in_window(scores, places[None], places[None])
    return (rules.weights(scores) @ value).transpose(1, 2).contiguous()


def _over_prefix(
    query: Tensor,
    own: tuple[Tensor, Tensor, Tensor],
    cache: PrefixCache,
    prefix: tuple[Tensor, Tensor] | None,
    rules: ScoreRules,
) -> Tensor:
    """Attention of rows over the prefix and `own` keys, values and mask; grouped heads share their keys uncopied.

    `query` is scaled, shape (B, heads, S, d). Returns shape (B, S, heads, d).
    """
    key, value, mask = own
    batch, heads, steps, width = query.shape
    kv = key.shape[1]
    groups = heads // kv
    grouped = query.reshape(batch, kv, groups * steps, width)
    scores = rules.capped(grouped @ key.transpose(2, 3)) + mask.repeat(1, 1, groups, 1)
    scores = rules.in_window(scores, cache.queries, cache.positions)
    length = 0
    if prefix is not None:
        length = prefix[0].shape[1]
        by_head = grouped.transpose(0, 1).reshape(kv, -1, width)
        to_prefix = (by_head @ prefix[0].transpose(1, 2)).view(kv, batch, groups * steps, length).transpose(0, 1)
        places = torch.arange(length, device=query.device)
        to_prefix = rules.in_window(rules.capped(to_prefix), cache.queries, places)
        scores = torch.cat([to_prefix, scores], -1)
    weights = rules.weights(scores.view(batch, heads, steps, -1)).view(scores.shape)
    out = weights[..., length:] @ value
    if prefix is not None:
        on_prefix = weights[..., :length].transpose(0, 1).reshape(kv, batch * groups * steps, length) @ prefix[1]
        out = on_prefix.view(kv, batch, groups * steps, value.shape[-1]).transpose(0, 1) + out
    return out.reshape(batch, heads, steps, value.shape[-1]).transpose(1, 2).contiguous()
