"""Sharded training: how a model is split over processes, and what torch and accelerate must be told."""

import os

import torch
from transformers import Trainer


def keep_logps_whole(trainer: Trainer) -> None:
    """Leaves the output of a split model as it is, and averages gradients in float32.

    Accelerate's own policy casts what each module returns to bfloat16, in which a log-prob of -300 nats is known to 2.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def allow_fsdp_on_cpu() -> None:
    """Lets accelerate split a model over CPU processes where asked to: it offers FSDP to GPUs alone, torch to all.

    It looks at the kind of processes only; their device and gloo stay as they are.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def model_split() -> str:
    """How the processes hold the model: `zero3`, `fsdp2` or `whole`; names the folder of their checkpoints."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        return "zero3"
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" else "whole"
