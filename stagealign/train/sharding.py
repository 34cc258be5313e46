"""Sharded training: settings of torch and accelerate for a model that is split over processes."""

import os

import torch
from transformers import Trainer


def keep_arithmetic(trainer: Trainer) -> None:
    """Leaves weights, gradients and log-probs of a split model in float32; products are in bfloat16 by autocast.

    A whole model and the reference model compute so. Accelerate's own policy gathers weights in bfloat16, which moves
    log-probs by a nat, and casts outputs of modules to bfloat16, which resolves a log-prob of -300 nats to 2 nats.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def allow_fsdp_on_cpu() -> None:
    """Makes accelerate accept a requested FSDP on CPU processes, which torch supports.

    Only accelerate's type of processes changes; device and gloo backend stay.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def model_split() -> str:
    """Sharding of the model: `zero3`, `fsdp2` or `whole`; it names the folder of checkpoints."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        return "zero3"
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" else "whole"
