"""One round of training, from artifacts to a policy."""

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stagealign.base.errors import CannotRun
from stagealign.data.records import Pair, prompt_hash, read_rows
from stagealign.grid.spec import Lora, Method
from stagealign.policy.batch_rows import out_of_memory
from stagealign.policy.context import trainable
from stagealign.policy.lm import LanguageModel, load, save, tensor
from stagealign.store.artifact import Facts, Work
from stagealign.store.folder import SCRATCH
from stagealign.train.adapters import add_adapters, merge_adapters
from stagealign.train.launch import cut, spread
from stagealign.train.reference import TrainingSet, tokenize, trunk_input
from stagealign.train.sharding import model_split
from stagealign.train.trainer import RoundSettings, align, train


def within_memory(
    lm: LanguageModel,
    again: Callable[[], LanguageModel],
    data: TrainingSet,
    method: Method,
    settings: RoundSettings,
    scratch: Path,
) -> tuple[LanguageModel, list[dict[str, float]], int]:
    """(policy, curve, micro-batch) of a round; restarts with a smaller micro-batch if memory runs out.

    The global batch does not change. `again` reloads the starting policy. Raises CannotRun if one pair does not fit.
    """
    micro, _ = cut(settings.batch, 1, settings.micro_batch)
    while True:
        curve: list[dict[str, float]] = []
        if _fits(lm, data, method, replace(settings, micro_batch=micro), scratch, curve):
            return lm, curve, micro
        if micro == 1:
            raise CannotRun(
                "training ran out of memory with one pair at a time; free some memory, or use `--workers 1`"
            )
        micro = next(n for n in range(micro // 2, 0, -1) if settings.batch % n == 0)
        del lm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lm = again()


def _fits(
    lm: LanguageModel,
    data: TrainingSet,
    method: Method,
    settings: RoundSettings,
    scratch: Path,
    curve: list[dict[str, float]],
) -> bool:
    """Trains the round and appends its steps to `curve`; returns False if memory ran out."""
    try:
        curve += align(lm, data, method, settings, scratch)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def build_policy(work: Work) -> Facts:
    """Builder of `policy`: one round of preference optimisation, in this process or in new ones."""
    if not work.context.devices.launched:
        facts = train_round(work)
        assert facts is not None, "one process is the first"
        return facts
    training = work.params["training"]
    given = {
        "params": dict(work.params),
        "inputs": {name: str(folder) for name, folder in work.inputs.items()},
        "out": str(work.out),
        "home": str(work.home),
    }
    return spread(work.context.devices, given, work.out, training["batch"], training["trained_layers"])


def train_round(work: Work) -> Facts | None:
    """Trains one round and writes the policy; facts in the first process, None in the others.

    With dtype bfloat16, compute is in bfloat16; the optimizer updates float32 weights, as 16 bits lose steps of 5e-7.
    """
    every = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    settings, method = _settings(work), Method(**work.params["method"])
    lm, max_length = _start(work), work.params["training"]["max_length"]
    pairs, _ = trainable(lm, every, max_length)
    tokens = tokenize(lm, pairs, max_length)
    reference = tensor(work.inputs["reference"] / "reference.safetensors", "reference")
    data = TrainingSet(tokens, reference, trunk_input(work), [prompt_hash(pair.prompt) for pair in pairs])
    scratch = work.out / SCRATCH / model_split()  # a sharded checkpoint cannot be loaded into a whole model
    lowered: Facts = {}
    if work.context.devices.launched:
        curve, weights = train(lm, data, method, settings, scratch)
    else:
        lm, curve, micro = within_memory(lm, partial(_start, work), data, method, settings, scratch)
        weights = None
        planned, _ = cut(settings.batch, 1, settings.micro_batch)
        if micro != planned:
            lowered = {"lowered": f"micro-batch {micro}, not {planned}: out of memory"}
    if int(os.environ.get("RANK", "0")):
        return None
    if weights is not None:  # this process holds only its part of the model
        lm = _gathered(work, settings, weights)
    _write_policy(lm, work, settings)
    return {
        "pairs": len(pairs),
        "tokens": sum(p.tokens for p in tokens),
        "cut": sum(p.cut for p in tokens),
        "curve": curve,
        **lowered,
    }


def _settings(work: Work) -> RoundSettings:
    """Settings of the round, from its parameters and this machine's devices."""
    training, devices = work.params["training"], work.context.devices
    names = ("batch", "epochs", "warmup", "schedule", "max_grad_norm", "dtype", "trained_layers")
    return RoundSettings(
        learning_rate=work.params["learning_rate"],
        order_seed=work.params["seed"],
        peft=Lora(**training["peft"]) if training.get("peft") else None,
        micro_batch=devices.micro_batch,
        activation_checkpointing=devices.activation_checkpointing,
        **{name: training[name] for name in names},
    )


def _start(work: Work) -> LanguageModel:
    """The policy that the round starts from, in float32."""
    return load(work.inputs["policy"], dtype="float32")


def _gathered(work: Work, settings: RoundSettings, weights: Mapping[str, Tensor]) -> LanguageModel:
    """The whole model with these trained weights."""
    lm = _start(work)
    if settings.peft:
        add_adapters(lm.model, settings.peft)
    lm.model.load_state_dict(weights)
    return lm


def _write_policy(lm: LanguageModel, work: Work, settings: RoundSettings) -> None:
    """Writes the trained policy in the round's dtype; adapters are merged into the weights."""
    if settings.peft:
        merge_adapters(lm.model)
    lm.model.to(getattr(torch, settings.dtype))
    save(lm, work.out, start=work.inputs["policy"], top_layers=settings.trained_layers)
