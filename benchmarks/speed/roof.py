"""Peak rates of this machine, measured beside each row, and the least arithmetic that a row's work needs.

Only useful tokens count: no padding, a prompt once for its two completions, the head only for scored tokens, and no
products inside attention. The count is equal for all sides, so the share of the peak compares them. A sampler that
reads the common beginning of all prompts only once can pass 100%.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed.turns import Given, Run, child


def measure(given: Given) -> Run:
    """Rates of matrix products in fp32 and bf16, in GFLOP/s, and of a copy (reads and writes), in GB/s."""
    measured = child("benchmarks.speed.roof:rates", given)
    measured.pop("peak_mb")
    return measured


def rates(given: Given) -> Run:
    """The three rates, each the best of several tries."""
    import torch

    size = 256 if given.small else 8192 if given.device == "cuda" else 2048
    measured = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size, device=given.device).to(getattr(torch, name)) for _ in range(2))
        measured[f"{name}_gflops"] = round(2 * size**3 / _best(lambda a=a, b=b: a @ b, given) / 1e9, 1)
    source = torch.ones(2**20 if given.small else 2**26, device=given.device)
    target = torch.empty_like(source)
    measured["copy_gbs"] = round(8 * len(source) / _best(lambda: target.copy_(source), given) / 1e9, 1)
    return measured


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
    """Numbers of weights that multiply a token: in the layers, and in the head; the embedding's look-up has none."""
    embedding = model.get_input_embeddings().weight
    body = sum(weight.numel() for weight in model.base_model.parameters()) - embedding.numel()
    return body, model.get_output_embeddings().weight.numel()


def pair_flops(model: Any, tokens: Sequence[Any], passes: int) -> float:
    """Operations on these pairs in `passes` forward passes; a backward pass counts as two."""
    body, head = weights(model)
    scored = sum(len(pair.chosen) + len(pair.rejected) for pair in tokens)
    return 2.0 * passes * (body * sum(pair.tokens for pair in tokens) + head * scored)


def reading_flops(model: Any, tokens: int) -> float:
    """Operations of an encoder's linear layers on this number of tokens."""
    import torch

    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 2.0 * linear * tokens


def writing_flops(model: Any, prompts: int, tokens: int) -> float:
    """Operations to read `prompts` tokens of prompts and to sample `tokens` tokens."""
    body, head = weights(model)
    return 2.0 * (body * (prompts + tokens) + head * tokens)


def share(run: Run, roof: Run, dtype: str) -> float | None:
    """Useful arithmetic of a run, in percent of the peak rate of matrix products; None if it was not counted."""
    if "flops" not in run:
        return None
    return round(100 * run["flops"] / run["seconds"] / 1e9 / roof[f"{dtype}_gflops"], 2)
