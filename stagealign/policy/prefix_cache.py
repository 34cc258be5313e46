"""Attention over a prefix that all rows share; its keys and values are stored once."""

from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "stagealign_shared_prefix"


class PrefixCache:
    """Keys and values of a prefix that all rows share, stored once, and of each row's own tokens."""

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
        """Keeps these rows, in this order; a row may be repeated."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attention over a prefix stored once and over each row's own keys, shape (B, S, heads, d).

    Grouped heads share their keys without a copy. `attention_mask` is additive, shape (B, 1, S, row tokens). Of the
    named arguments that transformers passes, only `scaling` and `shared`, the PrefixCache of the batch, are used.
    """
    scaling: float = given["scaling"]
    shared: PrefixCache | None = given.get("shared")
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
