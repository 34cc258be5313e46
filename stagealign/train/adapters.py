"""Low-rank adapters (LoRA): added before a round, merged into the weights after it."""

import torch
from torch import nn
from transformers import PreTrainedModel

from stagealign.base.errors import CannotRun
from stagealign.base.identity import stream
from stagealign.grid.spec import Lora
from stagealign.policy.layers import layer_count


def add_adapters(model: PreTrainedModel, lora: Lora, trained_layers: int | None = None) -> None:
    """Adds LoRA adapters to the linear layers of the model, or of its top `trained_layers`; freezes all other weights.

    Initial weights come from a fixed seed. Raises CannotRun if the extra `lora` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CannotRun("--peft lora: peft is not installed; `pip install 'stagealign[lora]'`") from error
    blocks = getattr(model.base_model, "layers", model.base_model)
    linear = {name for name, part in blocks.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted({name.rpartition(".")[2] for name in linear})
    if not targets:
        raise CannotRun(f"--peft lora: {type(model).__name__} has no linear layer of torch; leave --peft out")
    depth = 0 if trained_layers is None else layer_count(model)
    layers = None if trained_layers is None else list(range(depth - trained_layers, depth))
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, layers_to_transform=layers
    )
    with torch.random.fork_rng():
        torch.manual_seed(stream(0, "lora") % 2**32)
        inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)


def merge_adapters(model: nn.Module) -> None:
    """Merges the adapters into the weights and removes them."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
