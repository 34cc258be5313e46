"""`python -m benchmarks.devices`: seconds, peak memory and MFU of a full fine-tune step in bf16, by shape of the model.

Random weights in the shape of the real model, made-up token ids, DPO with FSDP2 on one device or more. The first step
of each run warms up and is not timed. `--small` runs a thin shape to check that everything works; its numbers mean
nothing, and it writes a file only if `--out` is given.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Word of a GPU's name -> its peak dense bf16 operations a second; other GPUs get no MFU. Source: data sheets, SXM."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and the batch for its measurement."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool
    micro_batch: int
    checkpointing: bool
    prompt: int = 512
    completion: int = 512
    """Tokens of each completion; a pair has one prompt and two completions."""


SHAPES = {
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, False, micro_batch=1, checkpointing=True),  # Llama-3-8B
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, True, micro_batch=4, checkpointing=False),  # Llama-3.2-1B
    "160m": Shape(768, 12, 12, 12, 2048, 50304, False, micro_batch=8, checkpointing=False),  # about Pythia-160m
}
SMALL = Shape(64, 2, 4, 2, 128, 264, False, micro_batch=1, checkpointing=True, prompt=16, completion=16)
STEPS, BATCH = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="shapes to measure, comma-separated")
    parser.add_argument("--devices", type=int, default=1, help="number of processes, one for each GPU")
    parser.add_argument("--small", action="store_true", help="a thin shape, for seconds; plumbing only")
    parser.add_argument("--out", type=Path, help="folder of the results; results/speed unless --small")
    given = parser.parse_args()
    names = ["small"] if given.small else given.shapes.split(",")
    unknown = set(names) - {*SHAPES, "small"}
    if unknown or BATCH % given.devices:
        parser.error(
            f"--shapes knows {', '.join(SHAPES)}, not {', '.join(unknown) or 'nothing'}; --devices divides {BATCH}"
        )
    out = given.out or (None if given.small else ROOT / "results" / "speed")
    for name in names:
        result = measure(name, given.devices)
        print(json.dumps(result, indent=1))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"devices-{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(name: str, count: int) -> dict[str, Any]:
    """Result of one shape on `count` processes, also if it is out of memory. Raises RuntimeError for other failures."""
    from stagealign.train.launch import launch

    with tempfile.TemporaryDirectory() as folder:
        words = [*launch("fsdp2", count), "-m", "benchmarks.devices", "rank", name, folder]
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        file = Path(folder) / "found.json"
        if done.returncode == 0:
            return dict(json.loads(file.read_text(encoding="utf-8")))
    if "OutOfMemoryError" in done.stderr:
        last = [line for line in done.stderr.splitlines() if "OutOfMemoryError" in line][-1]
        return {"shape": name, "devices": count, "state": "out of memory", "reason": last[-300:]}
    raise RuntimeError(f"{name}: ended with {done.returncode}\n{done.stderr[-3000:]}")


def rank(name: str, folder: Path) -> None:
    """Runs one process of a measurement; the first process writes the result."""
    import torch

    shape = SMALL if name == "small" else SHAPES[name]
    gpu = torch.cuda.is_available()
    model, pairs = _model(shape), _pairs(shape)
    parameters = model.num_parameters()
    seconds = _seconds(model, pairs, shape, folder)
    tokens = sum(pair.tokens for pair in pairs[:BATCH])
    length = shape.prompt + shape.completion
    flops = tokens * (6 * parameters + 6 * shape.layers * shape.width * length)  # causal: half the square of attention
    count = int(os.environ.get("WORLD_SIZE", "1"))
    hardware = torch.cuda.get_device_name() if gpu else "CPU"
    peak = next((value for word, value in PEAK_FLOPS.items() if word in hardware), None)
    used = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if int(os.environ.get("RANK", "0")) == 0:
        result = {
            "shape": name, "state": "done", "parameters": parameters, "hardware": hardware, "devices": count,
            "dtype": "bfloat16 arithmetic, float32 weights", "global_batch": BATCH, "micro_batch": _micro_batch(shape),
            "activation_checkpointing": shape.checkpointing, "tokens_a_step": tokens,
            "seconds_a_step": round(seconds, 4), "peak_memory_gib": round(used / 2**30, 2),
            "tokens_a_second": round(tokens / seconds, 1),
            "mfu": round(flops / seconds / (peak * count), 4) if peak else None,
            "versions": {package: metadata.version(package) for package in ("torch", "transformers", "accelerate")},
        }  # fmt: skip
        (folder / "found.json").write_text(json.dumps(result), encoding="utf-8")


def _micro_batch(shape: Shape) -> int:
    return min(shape.micro_batch, BATCH // int(os.environ.get("WORLD_SIZE", "1")))


def _model(shape: Shape) -> Any:
    """Model with random weights of this shape, on this process's device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.inner,
        tie_word_embeddings=shape.tied, max_position_embeddings=4096,
    )  # fmt: skip
    with device:
        return LlamaForCausalLM(config)


def _pairs(shape: Shape) -> list[Any]:
    """Pairs of random token ids for `STEPS` steps."""
    import torch

    from stagealign.policy.logps import PairTokens

    chance = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(shape.vocabulary, (length,), generator=chance).tolist())

    return [PairTokens(ids(shape.prompt), ids(shape.completion), ids(shape.completion)) for _ in range(STEPS * BATCH)]


def _seconds(model: Any, pairs: list[Any], shape: Shape, folder: Path) -> float:
    """Mean seconds of a step, without the first."""
    import torch
    from transformers import TrainerCallback

    from stagealign.grid.methods import DPO
    from stagealign.policy.lm import LanguageModel
    from stagealign.train.reference import TrainingSet
    from stagealign.train.trainer import RoundSettings, train

    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.append(time.perf_counter())

    settings = RoundSettings(
        5e-7, BATCH, 1, 0.0, "constant", 1.0, "bfloat16", order_seed=0, resume=False, checkpoint_steps=1000,
        gather=False, micro_batch=_micro_batch(shape), activation_checkpointing=shape.checkpointing,
    )  # fmt: skip
    data = TrainingSet(pairs, torch.full((len(pairs), 2), -1.0))
    lm = LanguageModel(model, None)  # type: ignore[arg-type]
    train(lm, data, replace(DPO), settings, folder / "scratch", callbacks=(Clock(),))
    return (clock[-1] - clock[0]) / (len(clock) - 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
