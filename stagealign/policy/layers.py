"""Split of a decoder into frozen lower layers (the trunk) and trained top layers."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stagealign.base.errors import StagealignError

FROZEN, TRAINED = "frozen.safetensors", "trained.safetensors"


def check_split(model: PreTrainedModel) -> None:
    """Raises StagealignError if a model's layers cannot be cut in two: they differ in kind, or have another name."""
    kinds = sorted(set(getattr(model.config.get_text_config(), "layer_types", None) or ()))
    if len(kinds) > 1 or not hasattr(model.base_model, "layers"):
        why = f"its layers are of several kinds ({', '.join(kinds)})" if kinds else "it has no list `layers`"
        raise StagealignError(f"{type(model).__name__}: {why}; set trained_layers to None to train every layer")


def trunk_of(model: PreTrainedModel, top_layers: int) -> PreTrainedModel:
    """The decoder's lower layers, all but `top_layers`; shares weights, returns hidden states before the final norm."""
    check_split(model)
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
    """Freezes all weights except the top layers and the final norm; embeddings and head are frozen too."""
    check_split(model)
    model.requires_grad_(False)
    body = model.base_model
    body.layers[layer_count(model) - top_layers :].requires_grad_(True)
    getattr(body, norm_name(body)).requires_grad_(True)


def layer_count(model: PreTrainedModel) -> int:
    """Number of decoder layers."""
    return len(model.base_model.layers)


def norm_name(body: nn.Module) -> str:
    """Attribute name of the final norm, as in Llama, Mistral, Qwen, GPT-NeoX and Phi. Raises StagealignError."""
    for name in ("norm", "final_layer_norm", "final_layernorm"):
        if hasattr(body, name):
            return name
    raise StagealignError(
        f"{type(body).__name__}: the name of its final norm is unknown; set trained_layers to None to train every layer"
    )


def _shallow(module: Any) -> Any:
    """A copy of a module that shares its children; a child can be replaced in the copy alone."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
