"""Log-probs of completions: how pairs are laid out for one forward, and the sum over completion positions only.

Two layouts give the same numbers. `rows`: each completion follows its own copy of the prompt, right-padded. `trees`: a
row holds several pairs. The start that all prompts share is stored once per row, and each prompt once for its two
completions; a mask lets a token see its own branch only. Trees have less padding but compute more attention that is
masked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CAUSAL_COST, MASKED_COST = 1.2, 1.6
"""Cost of a square of attention, relative to the same arithmetic in a linear layer. Measured on CPUs, where no kernel
skips much of a square below 1,024 tokens."""


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

    input_ids: Tensor
    """(B, N)"""
    position_ids: Tensor
    """(B, N)"""
    mask: Tensor | None
    """(B, 1, N, N), True where a token may attend; None for plain causal rows."""
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


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest start that all sequences share."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def pack(pairs: Sequence[PairTokens], hidden_size: int) -> Packed:
    """The cheapest of the layouts for these pairs, in a decoder of width `hidden_size`."""
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    cheapest, layout = _cost(2 * len(pairs), longest, CAUSAL_COST, hidden_size), None
    shared = shared_prefix([pair.prompt for pair in pairs])
    own = [pair.tokens - shared for pair in pairs]
    for count in range(1, len(pairs) + 1):
        rows = into_rows(own, count)
        longest = shared + max(sum(own[i] for i in row) for row in rows)
        cost = _cost(count, longest, MASKED_COST, hidden_size)
        if cost < cheapest:
            cheapest, layout = cost, rows
    return pack_rows(pairs) if layout is None else pack_trees(pairs, layout)


def _cost(rows: int, longest: int, attention: float, hidden_size: int) -> float:
    """Compute of a decoder on rows of this length, in units of one token through its linear layers."""
    return rows * longest * (1 + attention * longest / (6 * hidden_size))


def into_rows(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices of items of these sizes, in `count` rows of similar sum: largest first, each to the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        row = filled.index(min(filled))
        rows[row].append(number)
        filled[row] += sizes[number]
    return rows


def pack_rows(pairs: Sequence[PairTokens]) -> Packed:
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
    positions = torch.arange(longest).expand(2 * len(pairs), -1)
    return _packed(ids, positions, None, origin, scored)


def pack_trees(pairs: Sequence[PairTokens], rows: Sequence[Sequence[int]]) -> Packed:
    """Several pairs a row: the start that all prompts share, then each pair's rest of the prompt, chosen and rejected.

    `rows` holds indices of pairs. Rows are padded on the right with masked tokens.
    """
    shared = shared_prefix([pair.prompt for pair in pairs])
    size = shared + max(sum(pairs[number].tokens - shared for number in row) for row in rows)
    spans = [_spans(pairs, row, shared) for row in rows]
    mask = torch.stack([_tree_mask(size, shared, list(row.values()))[None] for row in spans])
    ids = torch.zeros(len(rows), size, dtype=torch.long)
    positions, origin = torch.zeros_like(ids), torch.full_like(ids, -1)
    scored = _Layout()
    row_of = {number: at for at, row in enumerate(rows) for number in row}
    offset = 0
    for number, pair in enumerate(pairs):
        row, length = row_of[number], len(pair.prompt)
        here, chosen, rejected, end = spans[row][number]
        own = torch.cat([torch.arange(shared), torch.arange(here, end)])
        ids[row, own] = torch.tensor(pair.prompt + pair.chosen + pair.rejected)
        positions[row, own] = torch.tensor([*range(length + len(pair.chosen)), *range(length, length + end - rejected)])
        origin[row, own] = offset + torch.arange(pair.tokens)
        scored.place.append(row * size + own)
        for side, (start, completion) in enumerate(((chosen, pair.chosen), (rejected, pair.rejected))):
            before = torch.arange(start - 1, start + len(completion) - 1)
            before[:1] = own[length - 1]
            scored.add(row * size + before, completion, 2 * number + side)
        offset += pair.tokens
    return _packed(ids, positions, mask, origin, scored)


def _spans(pairs: Sequence[PairTokens], row: Sequence[int], shared: int) -> dict[int, tuple[int, int, int, int]]:
    """(start of the own prompt, of chosen, of rejected, end) of each pair within its row, by pair."""
    spans, here = {}, shared
    for number in row:
        chosen = here + len(pairs[number].prompt) - shared
        rejected = chosen + len(pairs[number].chosen)
        end = rejected + len(pairs[number].rejected)
        spans[number] = (here, chosen, rejected, end)
        here = end
    return spans


def _tree_mask(size: int, shared: int, spans: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Causal mask of shape (N, N): a completion sees the shared start, its own prompt and itself."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[:, :shared] = True
    for prompt, chosen, rejected, end in spans:
        mask[prompt:end, prompt:chosen] = True
        mask[chosen:rejected, chosen:rejected] = True
        mask[rejected:end, rejected:end] = True
    return mask.tril_().fill_diagonal_(True)


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


def _packed(ids: Tensor, positions: Tensor, mask: Tensor | None, origin: Tensor, scored: _Layout) -> Packed:
    segments = torch.cat(scored.segment)
    return Packed(
        ids,
        positions,
        mask,
        origin,
        torch.cat(scored.place),
        torch.cat(scored.predictor),
        torch.cat(scored.target),
        segments,
        torch.bincount(segments, minlength=len(scored.segment)),
    )


def to_device(packed: Packed, device: torch.device) -> Packed:
    """The same layout on another device."""
    moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in vars(packed).items()}
    return Packed(**moved)


def unpack(values: Tensor, packed: Packed) -> Tensor:
    """Per-token `values`, shape (B, N, d), back in the pairs' own order, shape (tokens of the pairs, d)."""
    return values.flatten(0, 1)[packed.place]


def repack(values: Tensor, packed: Packed) -> Tensor:
    """Inverse of `unpack`: shape (tokens of the pairs, d) to (B, N, d); padding holds arbitrary values."""
    return values[packed.origin.clamp(min=0)]


def completion_logps(hidden: Tensor, head: nn.Module, packed: Packed, chunk: int = 1024, whole: bool = False) -> Tensor:
    """Sum of log-probs over each completion's tokens, shape (2 x pairs,), float32.

    `hidden` is the last hidden state, shape (B, N, d). Logits are computed for `chunk` completion positions at a time,
    never for prompt positions. With `whole` the head is called once with all positions, targets and the chunk size.
    """
    scored = hidden.flatten(0, 1)[packed.predictor]
    logps = head(scored, packed.target, chunk) if whole else token_logps(scored, packed.target, head, chunk)
    sums = torch.zeros(len(packed.lengths), dtype=torch.float32, device=hidden.device)
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
