"""Sampling for any causal model: `generate` with the model's own cache, and our own choice of each token.

Slower than `sample.py`, and right wherever `generate` is: what a model does to masks, caches and logits is its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stagealign.grid.spec import Decoding
from stagealign.policy.context import room
from stagealign.policy.draw import choose
from stagealign.policy.lm import LanguageModel, end_ids


@dataclass
class Choice(LogitsProcessor):
    """Leaves one token a row: the one that the row's stream of draws chooses."""

    chance: Tensor
    """Draws, shape (B, steps)."""
    decoding: Decoding
    prompt: int
    """Tokens before the completion."""
    logps: list[Tensor] = field(default_factory=list)
    """Log-prob of each step's token at temperature 1, shape (B,)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        token, logp = choose(scores, self.chance[:, step], self.decoding, self._written(input_ids, scores))
        self.logps.append(logp)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, token[:, None], 0.0)

    def _written(self, input_ids: Tensor, scores: Tensor) -> Tensor | None:
        """How often each token stands in the completion so far, shape (B, vocabulary); None without penalties."""
        if not (self.decoding.presence_penalty or self.decoding.frequency_penalty):
            return None
        written = input_ids[:, self.prompt :]
        return torch.zeros(scores.shape, device=scores.device).scatter_add_(
            1, written, torch.ones_like(written, dtype=torch.float32)
        )


@dataclass(frozen=True)
class SampledIds:
    """One sampled completion: token ids without the end token, whether it ended, log-prob at temperature 1 in nats."""

    ids: tuple[int, ...]
    ended: bool
    logp: float


def general_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[Sequence[Tensor]],
    decoding: Decoding,
    rows: int = 256,
) -> Iterator[tuple[int, list[SampledIds]]]:
    """(place of the prompt, its candidates), one for each of its streams of draws, longest prompts first.

    A batch holds prompts of one length, so that nothing is padded: a state that runs over the tokens would see padding.
    """
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    width = max(1, rows // max(len(streams) for streams in uniforms))
    for length in sorted(by_length, reverse=True):
        own = by_length[length]
        for start in range(0, len(own), width):
            places = own[start : start + width]
            batch = _batch(lm, [prompts[i] for i in places], [uniforms[i] for i in places], decoding)
            yield from zip(places, batch, strict=True)


@torch.inference_mode()
def _batch(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], uniforms: Sequence[Sequence[Tensor]], decoding: Decoding
) -> list[list[SampledIds]]:
    """Candidates of prompts of one length."""
    counts = [len(streams) for streams in uniforms]
    ids = torch.tensor([list(prompt) for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)])
    ids = ids.to(lm.model.device)
    chance = torch.stack([one for streams in uniforms for one in streams]).to(lm.model.device)
    choice = Choice(chance, decoding, ids.shape[1])
    ends = end_ids(lm)
    config = GenerationConfig(
        max_new_tokens=room(lm, ids.shape[1], decoding), do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    out = lm.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([choice]),
    )
    found = list(_rows(out[:, ids.shape[1] :], torch.stack(choice.logps, 1), set(ends)))
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [found[start : start + count] for start, count in zip(starts, counts, strict=True)]


def _rows(written: Tensor, logps: Tensor, ends: set[int]) -> Iterator[SampledIds]:
    """Each row up to its first end token, whose log-prob counts."""
    for ids, own in zip(written.tolist(), logps.tolist(), strict=True):
        last = next((place for place, token in enumerate(ids) if token in ends), None)
        count = len(ids) if last is None else last + 1
        yield SampledIds(tuple(ids[: count - (last is not None)]), last is not None, round(sum(own[:count]), 3))
