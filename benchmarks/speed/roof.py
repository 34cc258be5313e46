"""The most that this machine does, measured beside each row, and the arithmetic that a row's work needs at least.

The arithmetic is that of useful tokens: no padding, a prompt once for its two completions, the head only where a token
is scored, attention's own products left out. It is the same for all sides, so a share tells how far each is from the
roof, not what else it computed. A sampler that reads what all prompts begin with only once can pass 100%.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed.turns import Given, Run, child


def measure(given: Given) -> Run:
    """Matrix products in fp32 and bf16, in GFLOP/s, and a copy's reads and writes, in GB/s."""
    found = child("benchmarks.speed.roof:rates", given)
    found.pop("peak_mb")
    return found


def rates(given: Given) -> Run:
    """The three rates, each the best of some tries."""
    import torch

    size = 256 if given.small else 8192 if given.device == "cuda" else 2048
    found = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size, device=given.device).to(getattr(torch, name)) for _ in range(2))
        found[f"{name}_gflops"] = round(2 * size**3 / _best(lambda a=a, b=b: a @ b, given) / 1e9, 1)
    source = torch.ones(2**20 if given.small else 2**26, device=given.device)
    target = torch.empty_like(source)
    found["copy_gbs"] = round(8 * len(source) / _best(lambda: target.copy_(source), given) / 1e9, 1)
    return found


def _best(work: Callable[[], Any], given: Given, tries: int = 8) -> float:
    import torch

    times = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        if given.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def weights(model: Any) -> tuple[int, int]:
    """Weights that multiply each token: those of the layers, and those of the head (a look-up multiplies nothing)."""
    embedding = model.get_input_embeddings().weight
    body = sum(one.numel() for one in model.base_model.parameters()) - embedding.numel()
    return body, model.get_output_embeddings().weight.numel()


def pair_flops(model: Any, tokens: Sequence[Any], passes: int) -> float:
    """Operations on these pairs in `passes` forwards; a backward counts as two."""
    body, head = weights(model)
    scored = sum(len(pair.chosen) + len(pair.rejected) for pair in tokens)
    return 2.0 * passes * (body * sum(pair.tokens for pair in tokens) + head * scored)


def reading_flops(model: Any, tokens: int) -> float:
    """Operations of an encoder on these tokens: those of its linear layers."""
    import torch

    linear = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    return 2.0 * linear * tokens


def writing_flops(model: Any, prompts: int, tokens: int) -> float:
    """Operations of reading prompts of so many tokens in all, and of sampling so many."""
    body, head = weights(model)
    return 2.0 * (body * (prompts + tokens) + head * tokens)


def share(run: Run, roof: Run, dtype: str) -> float | None:
    """Percent of the matrix products' rate that a run reached with its useful arithmetic."""
    if "flops" not in run:
        return None
    return round(100 * run["flops"] / run["seconds"] / 1e9 / roof[f"{dtype}_gflops"], 2)
