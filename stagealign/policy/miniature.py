"""A small model of a checkpoint's own architecture: same class, same flags, one layer of each type, random weights.

What holds for it holds for the architecture; what cannot be built this way is not proved.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SIZES: Mapping[str, int] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "ffn_hidden_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "attention_chunk_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "state_size": 8,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""Largest value of each size; a smaller one of the checkpoint stays."""
WINDOWS = ("sliding_window", "window_size")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
PER_LAYER = ("layer_types", "layers_block_type", "attention_layers", "mlp_layer_types", "no_rope_layers")
LARGEST = 2_000_000
"""Most weights of a miniature; an architecture that keeps more has sizes that this file does not know."""
NESTED = ("text_config", "vision_config", "audio_config")
PERIODS = ("attn_layer_period", "expert_layer_period", "full_attention_interval")
"""Layers after which a kind of layer comes again."""
SPREAD = 6.0
"""Factor on random matrices, so that windows, caps and scalings move the logits."""


def miniature(config: PreTrainedConfig, window: int = 16) -> PreTrainedModel:
    """A random model of the config's class in float32, with the eager attention that every quirk is written for.

    Windows are `window` tokens at most.

    Raises whatever transformers raises for a config that cannot be made small.
    """
    small = AutoConfig.for_model(config.model_type, **_shrunk(config.to_dict(), window))
    small._attn_implementation = "eager"
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(small).num_parameters()
    if weights > LARGEST:
        raise ValueError(f"{weights:,} weights remain")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(small, attn_implementation="eager").float()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(SPREAD)
    return model.eval()


def _shrunk(raw: dict[str, Any], window: int) -> dict[str, Any]:
    left_out = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config")
    found = {name: value for name, value in raw.items() if name not in left_out and not name.startswith("_")}
    heads = found.get("num_attention_heads") or found.get("n_head") or found.get("n_heads")
    for name in KEY_HEADS:
        if isinstance(found.get(name), int):
            found[name] = 4 if found[name] == heads else min(2, found[name])
    found |= {
        name: min(size, found[name])
        for name, size in {**SIZES, **dict.fromkeys(WINDOWS, window)}.items()
        if isinstance(found.get(name), int) and not isinstance(found[name], bool)
    }
    if found.get("head_dim") is not None and found.get("hidden_size"):
        found["head_dim"] = 8
    for name in NESTED:
        if isinstance(found.get(name), dict):
            found[name] = _shrunk(found[name], window) | {"model_type": found[name].get("model_type")}
    depth = _layers(found)
    for name in DEPTHS:
        if isinstance(found.get(name), int):
            found[name] = depth
    found |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(found.get(name), dict):
            found[name] = _rope(found[name])
    return found


def _layers(found: dict[str, Any]) -> int:
    """Number of layers: one of each type, at least two; the lists of types are cut to it."""
    lists = {name: found[name] for name in PER_LAYER if isinstance(found.get(name), list) and found[name]}
    if not lists:
        return max([2, *(found[name] for name in PERIODS if isinstance(found.get(name), int))])
    kinds = list(zip(*lists.values(), strict=False))
    chosen = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    chosen = sorted(chosen if len(chosen) > 1 else [0, *range(1, min(2, len(kinds)))])
    for name, values in lists.items():
        found[name] = [values[place] for place in chosen]
    return len(chosen)


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings whose per-dimension lists fit the small heads."""
    width = 4  # pairs of dimensions of a head of 8
    return {
        name: value[:width] if isinstance(value, list) and len(value) > width else value for name, value in rope.items()
    }
