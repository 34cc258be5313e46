"""The general path: transformers' `generate` with the model's own cache, and our own choice of each token.

Slower than `fast.py`, and right wherever `generate` is: masks, caches and logits are the model's own business. What a
checkpoint's `generation_config.json` says about decoding is not used, as on the fast path: `Decoding` says it all.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stagealign.grid.spec import Decoding
from stagealign.policy.batch_rows import Row, RowBatches, batch_row, rows_within
from stagealign.policy.context import room
from stagealign.policy.draw import choose
from stagealign.policy.lm import LanguageModel, end_ids

Batches = Literal["padded", "equal", "single"]
"""Rows that one call of `generate` may hold: any (padded on the left), those of one length, or one row."""
SINGLE: Batches = "single"
ROWS = 32
"""Rows of one call at most: finished rows stay until the last one ends."""


@dataclass(frozen=True)
class SampledIds:
    """One sampled completion: token ids without the end token, whether it ended, log-prob at temperature 1 in nats."""

    ids: tuple[int, ...]
    ended: bool
    logp: float
    end: int | None = None
    """The end token that was drawn; None if there is none."""


@dataclass
class DrawnTokens(LogitsProcessor):
    """Leaves one token a row: the one that the row's stream of draws chooses."""

    chance: Tensor
    """Draws, shape (B, steps)."""
    decoding: Decoding
    prompt: int
    """Tokens before the completion, padding included."""
    logps: list[Tensor] = field(default_factory=list)
    """Log-prob of each step's token at temperature 1, shape (B,)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        token, logp = choose(scores, self.chance[:, step], self.decoding, self._written(input_ids, scores))
        self.logps.append(logp)
        return only(token, scores)

    def _written(self, input_ids: Tensor, scores: Tensor) -> Tensor | None:
        """How often each token stands in the completion so far, shape (B, vocabulary); None without penalties."""
        if not (self.decoding.presence_penalty or self.decoding.frequency_penalty):
            return None
        written = input_ids[:, self.prompt :]
        return torch.zeros(scores.shape, device=scores.device).scatter_add_(
            1, written, torch.ones_like(written, dtype=torch.float32)
        )


def only(token: Tensor, scores: Tensor) -> Tensor:
    """Scores that leave `token`, shape (B,), of each row's vocabulary."""
    return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)


def general_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = ROWS,
    batches: Batches = "equal",
) -> Generator[tuple[int, list[SampledIds]]]:
    """Yields (place of the prompt, its candidates), one for each of its streams of draws, longest prompts first."""
    flat = [(place, number) for place, streams in enumerate(uniforms) for number in range(len(streams))]
    results: list[dict[int, SampledIds]] = [{} for _ in prompts]
    limits = RowBatches()

    def most(row: Row) -> int:
        """Rows of a batch whose first prompt, its longest, is that of `row`."""
        tokens = len(prompts[row[0]])
        return rows_within(lm, batch_row(0, tokens, room(lm, tokens, decoding), 1, decoding), rows)

    def sample(batch: Sequence[Row]) -> list[SampledIds]:
        chance = torch.stack([uniforms[place][number] for place, number in batch])
        return list(_batch(lm, [prompts[place] for place, _ in batch], chance, decoding))

    for alike in _batched([len(prompts[place]) for place, _ in flat], lm, decoding, rows, batches):
        for batch, found in limits.run([flat[i] for i in alike], most, sample):
            for (place, number), completion in zip(batch, found, strict=True):
                results[place][number] = completion
                if len(results[place]) == len(uniforms[place]):
                    yield place, [results[place][j] for j in range(len(uniforms[place]))]


def _batched(
    lengths: Sequence[int], lm: LanguageModel, decoding: Decoding, rows: int, batches: Batches
) -> Iterator[list[int]]:
    """Places of rows that one call may hold, longest first; rows of one call may get as many new tokens."""
    rows = 1 if batches == "single" else min(rows, ROWS)
    batch: list[int] = []
    last = None
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        alike = (room(lm, lengths[place], decoding), lengths[place] if batches != "padded" else None)
        if batch and (alike != last or len(batch) == rows):
            yield batch
            batch = []
        batch.append(place)
        last = alike
    if batch:
        yield batch


def _batch(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], chance: Tensor, decoding: Decoding
) -> Iterator[SampledIds]:
    """A completion of each prompt, by its row of `chance`."""
    width = max(map(len, prompts))
    ends = end_ids(lm)
    drawn = DrawnTokens(chance.to(lm.model.device), decoding, width)
    steps = min(room(lm, len(prompt), decoding) for prompt in prompts)
    out = generated(lm, prompts, drawn, steps, ends).sequences
    logps = torch.stack(drawn.logps, 1)
    for ids, own in zip(out[:, width:].tolist(), logps.tolist(), strict=True):
        last = next((place for place, token in enumerate(ids) if token in ends), None)
        count = len(ids) if last is None else last + 1
        end = None if last is None else ids[last]
        yield SampledIds(tuple(ids[: count - (end is not None)]), end is not None, round(sum(own[:count]), 3), end)


@torch.inference_mode()
def generated(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    processor: LogitsProcessor,
    steps: int,
    ends: Sequence[int],
    logits: bool = False,
) -> Any:
    """What `generate` returns for prompts in one batch, padded on the left; with `logits` also the model's own."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=lm.model.device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=ids.device)
    pad = ends[0] if ends else 0
    config = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=logits,
    )
    with _own_decoding(lm, config):
        return lm.model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )


@contextmanager
def _own_decoding(lm: LanguageModel, config: GenerationConfig) -> Iterator[None]:
    """`generate` fills what a config leaves open from the model's own: its penalties, its minimal length."""
    before = lm.model.generation_config
    lm.model.generation_config = config
    try:
        yield
    finally:
        lm.model.generation_config = before
