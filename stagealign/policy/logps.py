"""Log-probs of completions: how pairs are laid out for one forward, and the sum over completion positions only.

Three layouts give the same numbers. `branches`: every token once, in one row; attention gathers each completion with
its prompt (`branches.py`), so that nothing is padded and a prompt is computed once for its two completions. `rows`:
each completion follows its own copy of the prompt, padded on the right. `plain`: the same rows, for the model's own
whole forward, one call for each length. `forward.py` says which of them a model may take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stagealign.policy.branches import Branches, branches_of

Layout = Literal["branches", "rows", "plain"]


@dataclass(frozen=True)
class PairTokens:
    """Token ids of one pair; completions end with EOS unless they were cut."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    cut: int = 0
    """Number of the two completions that were cut at `max_length`."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt, chosen and rejected, each once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Packed:
    """A micro-batch of pairs laid out for one forward; B rows of N tokens, M scored completion tokens."""

    layout: Layout
    input_ids: Tensor
    """(B, N)"""
    origin: Tensor
    """(B, N): index of the token in the pairs' tokens laid end to end as prompt, chosen, rejected; -1 for padding."""
    place: Tensor
    """(tokens of the pairs,): flat index in (B, N) of each token of the pairs; shared tokens are repeated."""
    predictor: Tensor
    """(M,): flat index in (B, N) of the token before each scored token."""
    target: Tensor
    """(M,): ids of the scored tokens."""
    segment: Tensor
    """(M,): 2 x pair for chosen, 2 x pair + 1 for rejected."""
    lengths: Tensor
    """(2 x pairs,): scored tokens of each segment."""
    position_ids: Tensor | None = None
    """(1, N) of branches; None for rows, which start at 0."""
    branches: Branches | None = None


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest start that all sequences share."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def pack(pairs: Sequence[PairTokens], layout: Layout = "branches", share: bool = True) -> Packed:
    """The pairs in a layout; with `share`, branches store the start that all prompts share once for all pairs.

    Without it, what a pair's tokens are computed from and how does not depend on the pairs beside it.
    """
    return pack_branches(pairs, share) if layout == "branches" else pack_rows(pairs, layout)


def pack_rows(pairs: Sequence[PairTokens], layout: Layout = "rows") -> Packed:
    """Two rows a pair, prompt + chosen and prompt + rejected, padded on the right."""
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    ids = torch.zeros(2 * len(pairs), longest, dtype=torch.long)
    origin = torch.full_like(ids, -1)
    scored = _Layout()
    offset = 0
    for number, pair in enumerate(pairs):
        start = len(pair.prompt)
        scored.place.append(2 * number * longest + torch.arange(start + len(pair.chosen)))
        scored.place.append((2 * number + 1) * longest + start + torch.arange(len(pair.rejected)))
        for side, completion in enumerate((pair.chosen, pair.rejected)):
            row, end = 2 * number + side, start + len(completion)
            ids[row, :end] = torch.tensor(pair.prompt + completion)
            origin[row, :start] = offset + torch.arange(start)
            origin[row, start:end] = offset + start + side * len(pair.chosen) + torch.arange(len(completion))
            scored.add(row * longest + torch.arange(start - 1, end - 1), completion, row)
        offset += pair.tokens
    return _packed(layout, ids, origin, scored)


def pack_branches(pairs: Sequence[PairTokens], share: bool = True) -> Packed:
    """One row: the start that all prompts share, then each pair's rest of the prompt, chosen and rejected."""
    shared = shared_prefix([pair.prompt for pair in pairs]) if share else 0
    size = shared + sum(pair.tokens - shared for pair in pairs)
    ids = torch.zeros(1, size, dtype=torch.long)
    positions, origin = torch.zeros_like(ids), torch.zeros_like(ids)
    scored, sequences = _Layout(), []
    here, offset = shared, 0
    for number, pair in enumerate(pairs):
        length, end = len(pair.prompt), here + pair.tokens - shared
        own = torch.cat([torch.arange(shared), torch.arange(here, end)])
        ids[0, own] = torch.tensor(pair.prompt + pair.chosen + pair.rejected)
        second = torch.arange(length, length + len(pair.rejected))
        positions[0, own] = torch.cat([torch.arange(length + len(pair.chosen)), second])
        origin[0, own] = offset + torch.arange(pair.tokens)
        scored.place.append(own)
        prompt, chosen, rejected = own.split([length, len(pair.chosen), len(pair.rejected)])
        for side, (place, completion) in enumerate(((chosen, pair.chosen), (rejected, pair.rejected))):
            scored.add(torch.cat([prompt[-1:], place])[: len(completion)], completion, 2 * number + side)
        sequences += [torch.cat([prompt, place]) for place in (chosen, rejected) if len(place)] or [prompt]
        here, offset = end, offset + pair.tokens
    return _packed("branches", ids, origin, scored, positions, branches_of(sequences, size))


@dataclass(frozen=True)
class _Layout:
    """Parts of a layout, collected pair by pair: scored completions, and the flat indices of all tokens."""

    place: list[Tensor] = field(default_factory=list)
    predictor: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    segment: list[Tensor] = field(default_factory=list)

    def add(self, predictor: Tensor, completion: Sequence[int], segment: int) -> None:
        """Adds a completion; `predictor`: flat index of the token before each of its tokens."""
        self.predictor.append(predictor)
        self.target.append(torch.tensor(completion, dtype=torch.long))
        self.segment.append(torch.full((len(completion),), segment))


def _packed(
    layout: Layout,
    ids: Tensor,
    origin: Tensor,
    scored: _Layout,
    positions: Tensor | None = None,
    branches: Branches | None = None,
) -> Packed:
    segments = torch.cat(scored.segment)
    lengths = torch.bincount(segments, minlength=len(scored.segment))
    place, predictor, target = (torch.cat(part) for part in (scored.place, scored.predictor, scored.target))
    return Packed(layout, ids, origin, place, predictor, target, segments, lengths, positions, branches)


def to_device(packed: Packed, device: torch.device) -> Packed:
    """The same layout on another device."""
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor | Branches) else value
        for name, value in vars(packed).items()
    }
    return Packed(**moved)


def unpack(values: Tensor, packed: Packed) -> Tensor:
    """Per-token `values`, shape (B, N, d), back in the pairs' own order, shape (tokens of the pairs, d)."""
    return values.flatten(0, 1)[packed.place]


def repack(values: Tensor, packed: Packed) -> Tensor:
    """Inverse of `unpack`: shape (tokens of the pairs, d) to (B, N, d); padding holds arbitrary values."""
    return values[packed.origin.clamp(min=0)]


def completion_sums(logps: Tensor, packed: Packed) -> Tensor:
    """Sum over each completion of its tokens' log-probs, shape (M,) to (2 x pairs,), float32."""
    sums = torch.zeros(len(packed.lengths), dtype=torch.float32, device=logps.device)
    return sums.index_add(0, packed.segment, logps)


def token_logps(scored: Tensor, target: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """Log-prob of each target, shape (M,), float32, from hidden states of shape (M, d), `chunk` rows at a time."""
    parts = []
    for rows, targets in zip(scored.split(chunk), target.split(chunk), strict=True):
        if rows.requires_grad and len(scored) > chunk:
            parts.append(checkpoint(_token_logps, rows, targets, head, use_reentrant=False))
        else:
            parts.append(_token_logps(rows, targets, head))
    return torch.cat(parts)


def _token_logps(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-prob of each target, shape (M,), float32."""
    logits = head(hidden).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
