"""Log-probs of completions: how pairs are laid out for one forward, and the sum over completion positions only.

Two layouts give the same numbers. `rows`: each completion behind its own copy of the prompt, right-padded. `tree`: all
pairs of the micro-batch in one row, what their prompts share stored once, each prompt once for its two completions; a
mask lets a token see its own branch only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TREE_ATTENTION_COST = 3.0
"""A masked square of attention costs about this many times its share of the arithmetic (measured on CPUs)."""


@dataclass(frozen=True)
class PairTokens:
    """Token ids of one pair; completions end with EOS unless they were cut."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    cut: int = 0
    """Completions of the two that `max_length` cut."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt, chosen and rejected, each once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Packed:
    """A micro-batch of pairs laid out for one forward; B rows of N tokens, M scored completion tokens."""

    input_ids: Tensor
    """(B, N)"""
    position_ids: Tensor
    """(B, N)"""
    mask: Tensor | None
    """(1, 1, N, N), True where a token may look; None for plain causal rows."""
    origin: Tensor
    """(B, N): the token's place in the pairs' tokens laid end to end as prompt, chosen, rejected; -1 is padding."""
    place: Tensor
    """(tokens of the pairs,): flat place in (B, N) of each of those tokens; a shared one is named by each pair."""
    predictor: Tensor
    """(M,): flat place in (B, N) of the token before a scored one."""
    target: Tensor
    """(M,): the scored token."""
    segment: Tensor
    """(M,): 2 x pair for chosen, 2 x pair + 1 for rejected."""
    lengths: Tensor
    """(2 x pairs,): scored tokens of each segment."""


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest start that all sequences share."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def pack(pairs: Sequence[PairTokens], hidden_size: int) -> Packed:
    """The cheaper of the two layouts for these pairs, in a decoder of width `hidden_size`."""
    shared = shared_prefix([pair.prompt for pair in pairs])
    tree = shared + sum(pair.tokens - shared for pair in pairs)
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    rows = 2 * len(pairs) * longest
    tree_cost = tree + TREE_ATTENTION_COST * tree**2 / (6 * hidden_size)
    rows_cost = rows + rows * longest / (12 * hidden_size)
    return pack_tree(pairs) if tree_cost < rows_cost else pack_rows(pairs)


def pack_rows(pairs: Sequence[PairTokens]) -> Packed:
    """Two rows a pair, prompt + chosen and prompt + rejected, padded on the right."""
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    ids = torch.zeros(2 * len(pairs), longest, dtype=torch.long)
    origin = torch.full_like(ids, -1)
    place, predictor, target, segment = [], [], [], []
    offset = 0
    for number, pair in enumerate(pairs):
        start = len(pair.prompt)
        place.append(2 * number * longest + torch.arange(start + len(pair.chosen)))
        place.append((2 * number + 1) * longest + start + torch.arange(len(pair.rejected)))
        for side, completion in enumerate((pair.chosen, pair.rejected)):
            row, end = 2 * number + side, start + len(completion)
            ids[row, :end] = torch.tensor(pair.prompt + completion)
            origin[row, :start] = offset + torch.arange(start)
            origin[row, start:end] = offset + start + side * len(pair.chosen) + torch.arange(len(completion))
            predictor.append(row * longest + torch.arange(start - 1, end - 1))
            target.append(torch.tensor(completion, dtype=torch.long))
            segment.append(torch.full((len(completion),), row))
        offset += pair.tokens
    positions = torch.arange(longest).expand(2 * len(pairs), -1)
    return _packed(ids, positions, None, origin, place, predictor, target, segment)


def pack_tree(pairs: Sequence[PairTokens]) -> Packed:
    """One row: what all prompts share, then for each pair the rest of its prompt, chosen, rejected."""
    shared = shared_prefix([pair.prompt for pair in pairs])
    ids, positions, origin = list(pairs[0].prompt[:shared]), list(range(shared)), list(range(shared))
    place, predictor, target, segment = [], [], [], []
    spans: list[tuple[int, int, int, int]] = []
    offset = 0
    for number, pair in enumerate(pairs):
        length, here = len(pair.prompt), len(ids)
        ids += pair.prompt[shared:]
        positions += range(shared, length)
        origin += range(offset + shared, offset + length)
        last_prompt, first_completion = (len(ids) - 1 if length > shared else shared - 1), len(ids)
        for side, completion in enumerate((pair.chosen, pair.rejected)):
            start = len(ids)
            ids += completion
            positions += range(length, length + len(completion))
            first = offset + length + side * len(pair.chosen)
            origin += range(first, first + len(completion))
            places = torch.arange(start - 1, start + len(completion) - 1)
            places[:1] = last_prompt
            predictor.append(places)
            target.append(torch.tensor(completion, dtype=torch.long))
            segment.append(torch.full((len(completion),), 2 * number + side))
        place += [torch.arange(shared), torch.arange(here, len(ids))]
        spans.append((here, first_completion, start, len(ids)))
        offset += pair.tokens
    mask = _tree_mask(len(ids), shared, spans)
    return _packed(
        torch.tensor([ids]), torch.tensor([positions]), mask, torch.tensor([origin]), place, predictor, target, segment
    )


def _tree_mask(size: int, shared: int, spans: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """(1, 1, N, N): causal, and a completion sees the shared prompt, its own prompt and itself.

    A span is one pair's (start of its own prompt, of chosen, of rejected, end).
    """
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[:, :shared] = True
    for prompt, chosen, rejected, end in spans:
        mask[prompt:end, prompt:chosen] = True
        mask[chosen:rejected, chosen:rejected] = True
        mask[rejected:end, rejected:end] = True
    return mask.tril_()[None, None]


def _packed(
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    origin: Tensor,
    place: list[Tensor],
    predictor: list[Tensor],
    target: list[Tensor],
    segment: list[Tensor],
) -> Packed:
    segments = torch.cat(segment)
    return Packed(
        ids,
        positions,
        mask,
        origin,
        torch.cat(place),
        torch.cat(predictor),
        torch.cat(target),
        segments,
        torch.bincount(segments, minlength=len(segment)),
    )


def to_device(packed: Packed, device: torch.device) -> Packed:
    """The same layout on another device."""
    moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in vars(packed).items()}
    return Packed(**moved)


def unpack(values: Tensor, packed: Packed) -> Tensor:
    """Per-token `values`, shape (B, N, d), back in the pairs' own order, shape (tokens of the pairs, d)."""
    return values.flatten(0, 1)[packed.place]


def repack(values: Tensor, packed: Packed) -> Tensor:
    """Inverse of `unpack`: shape (tokens of the pairs, d) to (B, N, d); padding repeats some token."""
    return values[packed.origin.clamp(min=0)]


def completion_logps(hidden: Tensor, head: nn.Module, packed: Packed, chunk: int = 1024, whole: bool = False) -> Tensor:
    """Sum of log-probs over each completion's tokens, shape (2 x pairs,), float32.

    `hidden` is the last hidden state, shape (B, N, d). Logits exist for `chunk` positions at a time, never for all, and
    never for prompt positions. With `whole` the head's forward takes all positions, targets and the chunk in one call.
    """
    scored = hidden.flatten(0, 1)[packed.predictor]
    logps = head(scored, packed.target, chunk) if whole else token_logps(scored, packed.target, head, chunk)
    sums = torch.zeros(len(packed.lengths), dtype=torch.float32, device=hidden.device)
    return sums.index_add(0, packed.segment, logps)


def token_logps(scored: Tensor, target: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """Log-prob of each target, shape (M,), float32; hidden states of shape (M, d) go to logits `chunk` at a time."""
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
