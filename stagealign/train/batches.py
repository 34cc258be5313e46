"""Order in which training visits the pairs, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback

from stagealign.base.identity import stream
from stagealign.policy.logps import PairTokens


class PairNumbers(Dataset[int]):
    """Data set of the pairs' indices; the trainer looks the pairs up."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        return place


NO_PAIR = -1
"""Index that fills the last micro-batches of an epoch, so that every process has the same number of them."""


class BatchOrder(Sampler[int]):
    """Seeded order in which each `batch` consecutive pairs are a global batch, sorted by length inside it.

    Micro-batch and number of processes therefore do not change which pairs a global batch has. The order is filled with
    NO_PAIR to a multiple of `multiple`.
    """

    def __init__(self, tokens: Sequence[PairTokens], batch: int, seed: int, multiple: int = 1):
        self.tokens, self.batch, self.seed, self.epoch = tokens, batch, seed, 0
        self.filled = -len(tokens) % multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens) + self.filled

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream(self.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        for start in range(0, len(order), self.batch):
            yield from sorted(order[start : start + self.batch], key=lambda i: (-self.tokens[i].tokens, i))
        yield from [NO_PAIR] * self.filled


class EpochOf(TrainerCallback):
    """Sets the epoch of the order at its start; with several processes, accelerate's loader does not pass it on."""

    def __init__(self, order: BatchOrder):
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))
