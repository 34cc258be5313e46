"""`python -m benchmarks.sampling_memory`: peak memory of sampling, measured on a CPU beside what `plan` counts.

Random weights, made-up token ids, one process a shape. The peak is the largest resident set of the process less the
one before the model was built, so it has the weights. `--quick` runs shapes of some hundred MiB, as the tests do.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KIB = 1024


@dataclass(frozen=True)
class Sampled:
    """A small decoder, and what is sampled with it."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    prompts: int
    candidates: int
    prompt: int
    """Tokens of a prompt, none of them shared."""
    new: int
    penalties: bool = False
    bound: str = field(default="", compare=False)
    """What takes the most."""


QUICK = (
    Sampled("keys", 8, 256, 8, 8, 512, 1_000, 96, 2, 64, 64, bound="keys and values of rows that all go on"),
    Sampled("prompts", 4, 256, 8, 2, 512, 1_000, 16, 1, 384, 4, bound="attention while long prompts are read"),
    Sampled("vocabulary", 2, 128, 4, 2, 256, 60_000, 128, 2, 16, 6, penalties=True, bound="logits with penalties"),
)
SHAPES = (
    *QUICK,
    Sampled("one candidate", 12, 384, 6, 6, 1_024, 8_000, 128, 1, 96, 96, bound="keys and values"),
    Sampled("grouped heads", 12, 576, 9, 3, 1_536, 49_152, 128, 2, 44, 96, bound="SmolLM2's layers, 12 of them"),
    Sampled("no penalties", 2, 128, 4, 2, 256, 100_000, 256, 1, 16, 6, bound="logits"),
)


@dataclass(frozen=True)
class Measured:
    """Bytes of one shape: measured, and by the formula that `plan` and the sampler use."""

    name: str
    peak: float
    estimate: float

    @property
    def ratio(self) -> float:
        """Estimate over measured."""
        return self.estimate / self.peak


def measure(shape: Sampled) -> Measured:
    """Measures one shape in a process of its own."""
    settings = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # so that what is freed goes back, and the peak is that of tensors
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-m", "benchmarks.sampling_memory", "--child", json.dumps(vars(shape))]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=settings, cwd=ROOT)
    return Measured(shape.name, *json.loads(done.stdout.splitlines()[-1]))


def child(shape: Sampled) -> tuple[float, float]:
    """(bytes measured, bytes estimated) of sampling with one shape."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from stagealign.base.batching import SampledBatch
    from stagealign.grid.spec import Decoding
    from stagealign.policy.batch_rows import shape_of
    from stagealign.policy.fast import fast_rows
    from stagealign.policy.lm import LanguageModel
    from stagealign.policy.start import byte_tokenizer

    torch.set_num_threads(1)
    torch.zeros(1).softmax(-1)
    tokenizer, rows = byte_tokenizer(), shape.prompts * shape.candidates
    before = _resident()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        max_position_embeddings=4_096,
        eos_token_id=0,
    )
    model = LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), tokenizer)
    with torch.no_grad():
        model.head.weight[0] = 0  # the end token never has the largest logit
    weights = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    prompts = [[1 + (7 * i + 3 * j + i * j) % 250 for j in range(shape.prompt)] for i in range(shape.prompts)]
    chance = [[torch.zeros(shape.new, dtype=torch.float64)] * shape.candidates for _ in prompts]
    penalty = 0.1 * shape.penalties
    decoding = Decoding(0.0, max_new_tokens=shape.new, presence_penalty=penalty, frequency_penalty=penalty)
    written = [row for _, group in fast_rows(model, prompts, chance, decoding, rows) for row in group]
    assert all(len(row.ids) == shape.new for row in written), "a row ended early"
    peak = _most_resident() - before
    batch = SampledBatch(rows, shape.prompts, 0, shape.prompt, shape.new, shape.penalties)
    return peak, weights + shape_of(model).peak(batch)


def _most_resident() -> int:
    """Most bytes of this process that were in memory; `ru_maxrss` would also count those before its exec."""
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * KIB


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Prints a line a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(Sampled(**json.loads(given.child)))))
        return
    for shape in QUICK if given.quick else SHAPES:
        found = measure(shape)
        print(
            f"{found.name:14} measured {found.peak / 2**20:7,.0f} MiB, estimated {found.estimate / 2**20:7,.0f} MiB, "
            f"ratio {found.ratio:.2f} ({shape.bound})",
            flush=True,
        )


if __name__ == "__main__":
    main()
