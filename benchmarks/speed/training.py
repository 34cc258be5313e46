"""Preference training: ours against TRL's DPOTrainer with its defaults and at its best, each run in its own process.

Same pairs, seeded weights and threads. The clock runs from text and loaded weights to trained weights, so all times
include tokenising, and ours its one pass of the reference model. `TRL` has its defaults: batch 8, live reference,
gradient checkpointing; only what needs a GPU or a network is off. `TRL best` computes its reference once and has no
gradient checkpointing. bf16 is autocast on both sides, on processors with bf16 products; ours is set here, because the
grid has no setting for it on a processor.
"""

import contextlib
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed import models, roof
from benchmarks.speed import pairs as source
from benchmarks.speed.turns import Given, Run, child, clock, turns
from stagealign.data.records import Pair

BATCH, BETA, LEARNING_RATE, MAX_LENGTH, SEED = 8, 0.1, 1e-6, 1024, 0
"""Defaults of TRL, which our side uses too."""
SIZES = {"14m": 64, "160m": 16, "135m": 16, "1b": 256, "8b": 64}
"""Shape -> pairs of one run; TRL takes minutes for them on two cores."""
GPU_PAIRS = {"14m": 512, "160m": 512, "135m": 512}
HELD_OUT, DECISION_RATE = 64, 1e-4
"""Held-out pairs for the comparison of bf16 with fp32, and a learning rate that moves the policy in few steps."""
SIDES: dict[str, dict[str, Any]] = {
    "ours": {"side": "ours"},
    "TRL": {"side": "trl"},
    "TRL best": {"side": "trl", "best": True},
    "ours bf16": {"side": "ours", "bf16": True},
    "TRL best bf16": {"side": "trl", "best": True, "bf16": True},
}
PATH = "benchmarks.speed.training"


def measure(given: Given, shape: str) -> dict[str, Any]:
    """Check of equal losses, and interleaved runs of all sides on one shape."""
    wide = shape in models.LLAMA
    sizes = {"shape": shape, "pairs": 4 if given.small else count(shape, given.device)}
    checked = child(f"{PATH}:check", given, shape=shape, count=64)
    limit = 1e-2 if wide else 1e-5  # bf16 weights keep three digits
    assert checked["difference"] < limit, f"the two losses differ, so the sides cannot be compared: {checked}"
    measured: dict[str, Any] = {"sizes": sizes, "check": checked}
    names = ["ours", "TRL"] if wide else list(SIDES) if half_products(given.device) else ["ours", "TRL", "TRL best"]
    if "ours bf16" in names:
        measured["decision"] = child(f"{PATH}:decision", given, **sizes)
    else:
        measured["left_out"] = {
            "bf16": "weights are bf16 in all sides" if wide else "the processor has no products in it"
        }
    measured["runs"] = turns({name: (f"{PATH}:side", {**SIDES[name], **sizes}) for name in names}, given)
    return measured


def count(shape: str, device: str) -> int:
    """Pairs of one run."""
    return (GPU_PAIRS if device == "cuda" else {}).get(shape, SIZES[shape])


def half_products(device: str) -> bool:
    """Whether the device multiplies in bf16 natively: GPUs, and processors with AMX or AVX-512 BF16."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8") if info.exists() else ""
    return device == "cuda" or "avx512_bf16" in flags or "amx_bf16" in flags


def chosen(count: int, given: Given, seed: int = SEED) -> tuple[list[Pair], str]:
    """Pairs of a row, and a description of them."""
    return (source.toy(count, seed), "toy text") if given.small else source.choose(count, seed)


def autocast(bf16: bool, device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 if asked; without its cache of weights, which an optimizer step would leave stale."""
    import torch

    on = torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
    return on if bf16 else contextlib.nullcontext()


def side(given: Given, side: str, shape: str, pairs: int, best: bool = False, bf16: bool = False) -> Run:
    """Time of one run, its pairs, useful tokens and their arithmetic."""
    from stagealign.train.reference import tokenize

    lm = models.policy(shape, given)
    data, _ = chosen(pairs, given)
    tokens = tokenize(lm, data, MAX_LENGTH)
    flops = roof.pair_flops(lm.model, tokens, passes=4)  # the reference's forward, the policy's, its backward
    reference = copy.deepcopy(lm.model) if side == "trl" else None
    with tempfile.TemporaryDirectory() as folder, clock(given.device) as took:
        if side == "trl":
            settings = BEST if best else {}
            trainer(lm, data, reference, folder, given.device, bf16=bf16, **settings).train()
        else:
            ours(lm, data, folder, given.device, Way(bf16))
    return {**took, "work": pairs, "tokens": sum(pair.tokens for pair in tokens), "flops": flops}


BEST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}


def trainer(lm: Any, pairs: Sequence[Pair], reference: Any, folder: str, device: str, **settings: Any) -> Any:
    """TRL's DPOTrainer with its defaults, except for `settings`."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    local: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "bf16": False,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": SEED,
    }
    config = DPOConfig(**{**local, **settings})
    given = (config.per_device_train_batch_size, config.max_length, DPOConfig(**local).learning_rate)
    assert given == (BATCH, MAX_LENGTH, LEARNING_RATE), f"TRL's defaults are now {given}"
    rows = Dataset.from_list([{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs])
    return DPOTrainer(lm.model, reference, config, train_dataset=rows, processing_class=lm.tokenizer)


@dataclass(frozen=True)
class Way:
    """Options of our engine."""

    bf16: bool = False
    rate: float = LEARNING_RATE
    lean: bool = False
    """Whether it uses the least memory: micro-batch 1 and activation checkpointing."""
    max_length: int = MAX_LENGTH


def ours(lm: Any, pairs: Sequence[Pair], folder: str, device: str, way: Way = Way()) -> None:
    """Trains `lm` with our engine, after computing its reference log-probs."""
    from stagealign.grid.methods import DPO
    from stagealign.train.reference import TrainingSet, reference_logps, tokenize
    from stagealign.train.trainer import RoundSettings, align

    tokens = tokenize(lm, pairs, way.max_length)
    dtype = "bfloat16" if way.bf16 or lm.model.dtype.itemsize == 2 else "float32"
    with autocast(way.bf16, device):
        reference = reference_logps(lm, tokens, None, None, dtype)
    settings = RoundSettings(way.rate, BATCH, 1, 0.0, "linear", 1.0, dtype, SEED, resume=False)
    if way.lean:
        settings = replace(settings, micro_batch=1, activation_checkpointing=True)
    with autocast(way.bf16, device):
        align(lm, TrainingSet(tokens, reference), replace(DPO, beta=BETA), settings, Path(folder))


def check(given: Given, shape: str, count: int) -> Run:
    """Both losses of the four pairs with the shortest completions; shifted weights are the reference.

    The shift makes margins differ from 0. Longer completions have log-probs of thousands of nats, which fp32 with
    its seven digits does not give to 1e-5.
    """
    import torch

    from stagealign.train.losses import Constants, Logps, sigmoid
    from stagealign.train.reference import reference_logps, tokenize

    lm = models.policy(shape, given)
    reference = models.shifted(lm)
    data, text = chosen(count, given)
    tokens = tokenize(lm, data, MAX_LENGTH)
    places = sorted(range(len(data)), key=lambda i: len(tokens[i].chosen) + len(tokens[i].rejected))[:4]
    few = [tokens[i] for i in places]
    policy, fixed = (reference_logps(model, few, None, None) for model in (lm, reference))
    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in few])
    loss = sigmoid(Logps(*policy.T, *fixed.T, *lengths.T), Constants(BETA)).mean().item()
    with tempfile.TemporaryDirectory() as folder:
        peer = trainer(lm, data, reference.model, folder, given.device)
        rows = [peer.train_dataset[i] for i in places]
        same = all(
            tuple(row[f"{name}_ids"]) == getattr(pair, name)
            for row, pair in zip(rows, few, strict=True)
            for name in ("prompt", "chosen", "rejected")
        )
        assert same, "the two sides tokenise these pairs differently"
        with torch.no_grad():
            batch = {name: value.to(given.device) for name, value in peer.data_collator(rows).items()}
            their_loss = peer.compute_loss(peer.model, batch).item()
    spread = sorted(pair.tokens for pair in tokens)
    return {
        "ours": loss,
        "TRL": their_loss,
        "difference": abs(loss - their_loss),
        "pairs": text,
        "tokenizer": "bytes" if lm.tokenizer.vocab_size < 1000 else "SmolLM2",
        "tokens_a_pair": {"least": spread[0], "median": spread[len(spread) // 2], "most": spread[-1]},
    }


def decision(given: Given, shape: str, pairs: int) -> Run:
    """Agreement between policies trained in fp32 and in bf16 on which completion of held-out pairs they prefer.

    Margins are computed in fp32 for both, so that they differ only by the training.
    """
    from stagealign.train.reference import reference_logps, tokenize

    held_out = 4 if given.small else HELD_OUT
    every, _ = chosen(pairs + held_out, given, SEED + 1)
    learn, rest = every[:pairs], every[pairs:]
    margins = []
    for bf16 in (False, True):
        lm = models.policy(shape, given)
        tokens = tokenize(lm, rest, MAX_LENGTH)
        before = reference_logps(lm, tokens, None, None)
        with tempfile.TemporaryDirectory() as folder:
            ours(lm, learn, folder, given.device, Way(bf16, DECISION_RATE))
        after = reference_logps(lm, tokens, None, None) - before
        margins.append((after[:, 0] - after[:, 1]).tolist())
    full, half = margins
    same = sum((a > 0) == (b > 0) for a, b in zip(full, half, strict=True))
    return {
        "held_out": len(rest),
        "learning_rate": DECISION_RATE,
        "same_preference": round(same / len(rest), 4),
        "accuracy_fp32": round(sum(a > 0 for a in full) / len(rest), 4),
        "accuracy_bf16": round(sum(b > 0 for b in half) / len(rest), 4),
    }


def longest(given: Given) -> dict[str, Any]:
    """Time and peak memory of one step of 8 pairs with 512 tokens a side."""
    length, pairs = (32 if given.small else 512), BATCH
    sizes = {"shape": "160m", "pairs": pairs, "length": length}
    once = replace(given, repeats=1)
    sides = ("ours", "ours, micro-batch 1 and activation checkpointing", "TRL")
    runs = turns({name: (f"{PATH}:step", {"side": name, **sizes}) for name in sides}, once)
    return {"sizes": sizes, "check": {"see": "train-160m"}, "runs": runs}


def step(given: Given, side: str, shape: str, pairs: int, length: int) -> Run:
    """Time and peak memory of one step on pairs of `length` tokens a side, half of them the prompt."""
    lm = models.policy(shape, given)
    data = source.exactly(lm, pairs, length, SEED)
    with tempfile.TemporaryDirectory() as folder:
        if side == "TRL":
            reference = copy.deepcopy(lm.model)
            with clock(given.device) as took:
                trainer(lm, data, reference, folder, given.device).train()
        else:
            with clock(given.device) as took:
                ours(lm, data, folder, given.device, Way(lean=side != "ours"))
    return {**took, "work": pairs}
