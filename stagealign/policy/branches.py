"""Attention over packed branches: each sequence is gathered from a row that holds every token once.

A sequence attends in a block of its own length, rounded up to `BLOCK`. What else is in the batch therefore changes
neither its keys nor the order in which a kernel sums them. Windows, soft caps and sinks are the layer's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from stagealign.base.errors import StagealignError

ATTENTION = "stagealign_branches"
BLOCK = 32
"""Lengths of sequences are rounded up to a multiple of this: fewer calls of the kernel."""


@dataclass(frozen=True)
class Branches:
    """The sequences of a packed row of N tokens, in groups of one block length."""

    groups: tuple[Tensor, ...]
    """Index of the token at each place of each sequence, shape (sequences, length); padding repeats token 0."""
    first: Tensor
    """Place at which each token is computed, in the groups' places laid end to end, shape (N,)."""

    def to(self, device: torch.device) -> "Branches":
        """The same branches on another device."""
        return Branches(tuple(group.to(device) for group in self.groups), self.first.to(device))


def branches_of(sequences: Sequence[Tensor], size: int) -> Branches:
    """Branches of these sequences of token indices; a token of several is computed in the first."""
    lengths = [-(-len(sequence) // BLOCK) * BLOCK for sequence in sequences]
    groups, first, start = [], torch.full((size,), -1), 0
    starts = {}
    for length in sorted(set(lengths), reverse=True):
        members = [number for number, own in enumerate(lengths) if own == length]
        group = torch.zeros(len(members), length, dtype=torch.long)
        for row, number in enumerate(members):
            group[row, : len(sequences[number])] = sequences[number]
            starts[number] = start + row * length
        groups.append(group)
        start += group.numel()
    for number in reversed(range(len(sequences))):
        first[sequences[number]] = starts[number] + torch.arange(len(sequences[number]))
    return Branches(tuple(groups), first)


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each branch, shape (1, N, heads, d). Called by transformers.

    Raises StagealignError where the model does not pass the branches on, or has a mask or a bias of its own.
    """
    branches: Branches | None = given.get("branches")
    if branches is None or attention_mask is not None or given.get("position_bias") is not None:
        raise StagealignError(f"{type(module).__name__}: its attention cannot be given branches")
    parts = [_tokens(part) for part in (query, key, value)]
    out = []
    for group in branches.groups:
        rows = [_gathered(part, group, heads) for part, heads in zip(parts, _heads(query, key, value), strict=True)]
        out.append(_causal(rows, given).transpose(1, 2).flatten(0, 1).flatten(1))
    whole = nn.functional.embedding(branches.first, torch.cat(out))
    return whole.view(1, len(branches.first), query.shape[1], value.shape[-1]), None


def _heads(*parts: Tensor) -> list[int]:
    return [part.shape[1] for part in parts]


def _tokens(part: Tensor) -> Tensor:
    """Shape (1, heads, N, d) to (N, heads x d)."""
    return part[0].transpose(0, 1).flatten(1)


def _gathered(part: Tensor, group: Tensor, heads: int) -> Tensor:
    """Shape (N, heads x d) to (sequences, heads, length, d)."""
    return nn.functional.embedding(group, part).unflatten(-1, (heads, -1)).transpose(1, 2)


def _causal(rows: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """Causal attention of query, key and value, shape (B, heads, L, d), with the layer's window, soft cap and sinks."""
    query, key, value = rows
    window, cap, sinks = (given.get(name) for name in ("sliding_window", "softcap", "s_aux"))
    scaling = query.shape[-1] ** -0.5 if given.get("scaling") is None else given["scaling"]
    seen = _within(window, query) if window else None
    if cap is None and sinks is None:
        grouped = query.shape[1] != key.shape[1]
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, scale=scaling, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3) * scaling).float()
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~(_within(None, query) if seen is None else seen), float("-inf"))
    if sinks is not None:
        last = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, last], -1)
    return scores.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def _within(window: int | None, query: Tensor) -> Tensor:
    """True where a query sees a key: not after it, and less than `window` before it; shape (L, L)."""
    places = torch.arange(query.shape[2], device=query.device)
    back = places[:, None] - places
    return (back >= 0) if window is None else (back >= 0) & (back < window)


@contextmanager
def branch_attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the model's layers attend within branches."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(ATTENTION, branch_attention)
