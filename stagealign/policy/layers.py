"""The decoder layers that learn and those that do not."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stagealign.base.errors import StagealignError

FROZEN, TRAINED = "frozen.safetensors", "trained.safetensors"


def trunk_of(model: PreTrainedModel, top_layers: int) -> PreTrainedModel:
    """The decoder's lower layers, all but `top_layers`; shares weights, returns hidden states before the final norm."""
    trunk = _shallow(model.base_model)
    trunk.layers = model.base_model.layers[: layer_count(model) - top_layers]
    setattr(trunk, norm_name(trunk), nn.Identity())
    return trunk


def top_of(model: PreTrainedModel, top_layers: int) -> PreTrainedModel:
    """The model's top layers, final norm and head; shares weights, takes the trunk's output as `inputs_embeds`."""
    top = _shallow(model)
    body = _shallow(model.base_model)
    body.layers = model.base_model.layers[layer_count(model) - top_layers :]
    setattr(top, model.base_model_prefix, body)
    return top


def freeze_below(model: PreTrainedModel, top_layers: int) -> None:
    """Leaves only the top layers and the final norm trainable; embeddings and head stay as they are."""
    model.requires_grad_(False)
    body = model.base_model
    body.layers[layer_count(model) - top_layers :].requires_grad_(True)
    getattr(body, norm_name(body)).requires_grad_(True)


def layer_count(model: PreTrainedModel) -> int:
    """Number of decoder layers."""
    return len(model.base_model.layers)


def norm_name(body: nn.Module) -> str:
    """Attribute name of the final norm; Llama, Mistral, Qwen, GPT-NeoX and Phi are known."""
    for name in ("norm", "final_layer_norm", "final_layernorm"):
        if hasattr(body, name):
            return name
    raise StagealignError(
        f"{type(body).__name__}: no final norm known; set trained_layers to None to train every layer"
    )


def _shallow(module: Any) -> Any:
    """A copy of a module that shares its children, so that one child can be swapped in the copy alone."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
