"""Keys and values of a prefix that rows share, and the attention over them: windows, caps and sinks included."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagealign.base.errors import StagealignError

ATTENTION = "stagealign_shared_prefix"


class PrefixCache:
    """Keys and values of a prefix that every row shares, once, and of each row's own tokens."""

    def __init__(self, layers: int):
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.layers = layers
        self.filled = 0
        self.capacity = 0
        self.queries = torch.empty(0)
        """Positions of the tokens that are read now, shape (B, S)."""
        self.positions = torch.empty(0)
        """Positions of the rows' own tokens so far, those read now included, shape (B, T)."""

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
            self.keys.append(keys.new_empty((*keys.shape[:2], self.capacity, keys.shape[3])))
            self.values.append(values.new_empty((*values.shape[:2], self.capacity, values.shape[3])))
        end = self.filled + keys.shape[2]
        self.keys[layer][:, :, self.filled : end] = keys
        self.values[layer][:, :, self.filled : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def pick(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may be named more than once."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


@dataclass(frozen=True)
class Quirks:
    """What a layer does to its scores besides scaling them; None where it does not."""

    window: int | None = None
    """A query sees keys less than so many positions before it."""
    cap: float | None = None
    """Scores become cap * tanh(scores / cap)."""
    sinks: Tensor | None = None
    """A logit a head that takes part in the softmax and carries no value, shape (heads,)."""

    def capped(self, scores: Tensor) -> Tensor:
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def unseen(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """True where a key is out of the window; positions of shape (B, S) and (B, T) or (T,) give (B, S, T)."""
        if self.window is None:
            return None
        return keys[..., None, :] <= queries[..., :, None] - self.window

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, shape (B, heads, S, T)."""
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared: PrefixCache | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over a prefix stored once and over each row's own keys, shape (B, S, heads, d).

    `attention_mask` is additive, shape (B, 1, S, row tokens). Called by transformers. Raises StagealignError where the
    model does not pass the cache on: then it must take the general path.
    """
    if shared is None:
        raise StagealignError(f"{type(module).__name__}: passes no cache on to its attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    quirks = Quirks(sliding_window or None, softcap or None, s_aux)
    if not shared.capacity:
        return _causal(query, key, value, scaling, quirks), None
    return _over_prefix(query, key, value, attention_mask, scaling, shared, int(module.layer_idx), quirks), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float, quirks: Quirks) -> Tensor:
    """Plain causal attention of one prefix, shape (1, S, heads, d)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if quirks == Quirks():
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2)
    places = torch.arange(query.shape[2], device=query.device)
    hidden = places[None, :] > places[:, None]
    unseen = quirks.unseen(places, places)
    scores = quirks.capped(query @ key.transpose(2, 3) * scaling)
    scores = scores.masked_fill(hidden if unseen is None else hidden | unseen, float("-inf"))
    return (quirks.weights(scores) @ value).transpose(1, 2)


def _over_prefix(query, key, value, mask, scaling, shared, layer, quirks):
    """Attention of rows over the shared prefix and their own tokens; grouped heads share their keys without a copy."""
    batch, heads, steps, width = query.shape
    kv = key.shape[1]
    groups = heads // kv
    prefix_key, prefix_value = shared.prefix[layer]
    length, depth = prefix_key.shape[1], value.shape[-1]
    grouped = (query * scaling).reshape(batch, kv, groups * steps, width)
    by_head = grouped.transpose(0, 1).reshape(kv, -1, width)
    to_prefix = (by_head @ prefix_key.transpose(1, 2)).view(kv, batch, groups * steps, length).transpose(0, 1)
    own = quirks.capped(grouped @ key.transpose(2, 3)) + mask.repeat(1, 1, groups, 1)
    to_prefix = quirks.capped(to_prefix)
    if quirks.window is not None:
        far = quirks.unseen(shared.queries, torch.arange(length, device=query.device))
        to_prefix = to_prefix.masked_fill(far[:, None].repeat(1, 1, groups, 1), float("-inf"))
        far = quirks.unseen(shared.queries, shared.positions)
        own = own.masked_fill(far[:, None].repeat(1, 1, groups, 1), float("-inf"))
    scores = torch.cat([to_prefix, own], -1)
    if quirks.sinks is None:
        weights = scores.softmax(-1)
    else:
        weights = quirks.weights(scores.view(batch, heads, steps, -1)).view(scores.shape)
    on_prefix = weights[..., :length].transpose(0, 1).reshape(kv, batch * groups * steps, length) @ prefix_value
    out = on_prefix.view(kv, batch, groups * steps, depth).transpose(0, 1) + weights[..., length:] @ value
    return out.reshape(batch, heads, steps, depth).transpose(1, 2)
