"""Rows of one batch of sampling: as many as free memory holds, and fewer once memory runs out."""

import gc
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedConfig

from stagealign.base.batching import FREE_SHARE, SampledBatch, SamplerShape
from stagealign.base.errors import CannotRun
from stagealign.grid.spec import Decoding
from stagealign.policy.lm import LanguageModel

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""Messages of torch's allocators."""
CGROUP = Path("/sys/fs/cgroup")
Row = tuple[int, int]
"""Place of a prompt, and the number of its candidate."""
UnitT = TypeVar("UnitT")
RowsT = TypeVar("RowsT")


class RowBatches:
    """Runs rows in batches; what runs out of memory is tried again with half as many rows, and later batches too.

    Each row has a random stream of its own, so its text does not depend on its batch.
    """

    def __init__(self) -> None:
        self.limit = sys.maxsize
        """Most rows of a batch, lowered when memory ran out."""

    def run(
        self, rows: Sequence[UnitT], most: Callable[[UnitT], int], sample: Callable[[Sequence[UnitT]], RowsT]
    ) -> Iterator[tuple[Sequence[UnitT], RowsT]]:
        """Yields (rows, what `sample` gives) of batches in order; `most` limits a batch by its first row.

        Raises CannotRun if one row does not fit.
        """
        start = 0
        while start < len(rows):
            batch = rows[start : start + max(1, min(self.limit, most(rows[start])))]
            sampled = _tried(sample, batch)
            if sampled is not None:
                yield batch, sampled
                start += len(batch)
                continue
            if len(batch) == 1:
                raise CannotRun(
                    "sampling ran out of memory with one row at a time; free some memory, or lower max_new_tokens"
                )
            self.limit = len(batch) // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _tried(sample: Callable[[Sequence[UnitT]], RowsT], batch: Sequence[UnitT]) -> RowsT | None:
    """What `sample` gives; None if memory ran out. Its tensors are free once this has returned."""
    try:
        return sample(batch)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch raises a plain RuntimeError on CPUs."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def shape_of(lm: LanguageModel) -> SamplerShape:
    """Sizes of a model that its sampling memory follows from."""
    config = lm.model.config.get_text_config()
    width, heads = _size(config, "hidden_size", 1), _size(config, "num_attention_heads", 1)
    return SamplerShape(
        layers=_size(config, "num_hidden_layers", 1),
        width=width,
        key_width=_size(config, "num_key_value_heads", heads) * _size(config, "head_dim", width // heads),
        heads=heads,
        mlp=3.0 * _size(config, "intermediate_size", 4 * width),
        vocabulary=_size(config, "vocab_size", 1),
        size=lm.model.dtype.itemsize,
    )


def _size(config: PreTrainedConfig, name: str, otherwise: int) -> int:
    """A size in a config, of layers with several the largest; `otherwise` if it names none."""
    given = getattr(config, name, None)
    sizes = [size for size in (given if isinstance(given, list | tuple) else [given]) if isinstance(size, int)]
    return max([size for size in sizes if size > 0], default=otherwise)


def batch_row(prefix: int, length: int, new: int, count: int, decoding: Decoding) -> SampledBatch:
    """One row of a batch, with its share of a prompt that has `count` candidates."""
    penalties = bool(decoding.presence_penalty or decoding.frequency_penalty)
    return SampledBatch(1, 1 / count, prefix, length - prefix, new, penalties)


def rows_within(lm: LanguageModel, row: SampledBatch, rows: int) -> int:
    """Rows, at most `rows`, whose peak free memory holds; `row` describes one of them."""
    device = lm.model.device
    held = free_bytes(device) * FREE_SHARE.get(device.type, FREE_SHARE["cpu"])
    return max(1, min(rows, int(held // shape_of(lm).peak(row))))


def free_bytes(device: torch.device) -> float:
    """Bytes that a program can still get: of a GPU, or of this machine and its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    from psutil import virtual_memory

    return float(min(virtual_memory().available, _container_bytes()))


def _container_bytes() -> float:
    """Free bytes of this container (cgroup v2); infinite without a limit."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        return float(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):  # no such files, or `max`
        return float("inf")
