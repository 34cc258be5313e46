"""A small model of a checkpoint's own architecture: same class, same flags, layers of each type, random weights.

What holds for it holds for the architecture; what cannot be built this way is not proved.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

WIDTH, HEADS, HEAD = 32, 4, 8
"""Sizes of the miniature: hidden state, attention heads, and one head."""
SIZES: Mapping[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "encoder_hash_byte_group_vocab"), 96),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "emb_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_inner", "dim_ff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    "intermediate_size_mlp": 48,
    "qk_head_dim": 2 * HEAD,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_attention_heads_per_layer", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group", "num_kv_shared_layers"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "d_head", "dim_head", "d_kv"), HEAD),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_headdim", "mamba_head_dim"), HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), HEAD),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("adapter_rank", "laurel_rank", "rotary_dim"), 4),
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "index_topk": 8,
}
"""Largest value of each size; a smaller one of the checkpoint stays."""
SCALED = ("attention_hidden_size", "lru_width")
"""Sizes that keep their ratio to the hidden size."""
WINDOWS = re.compile(r"^(?!.*layers).*(window|chunk_size|local_attention$)")
"""Names of lengths that a token sees."""
CAPS = re.compile(r"soft_?cap|logit_?cap")
"""Names of caps on scores or logits, which random weights would not reach."""
SCALARS: Mapping[str, float] = {"query_pre_attn_scalar": 8}
CAP = 1.0
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
PERIODS = ("attn_layer_period", "expert_layer_period", "full_attention_interval")
"""Layers after which a kind of layer comes again."""
PLACES = ("attn_layer_indices", "full_attn_idxs")
"""Lists of places of layers."""
LEFT_OUT = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config")
LARGEST = 12_000_000
"""Most weights of a miniature; an architecture that keeps more has sizes that this file does not know."""
SPREAD = 6.0
"""Factor on random matrices, so that windows, caps and scalings move the logits."""


def miniature(config: PreTrainedConfig, window: int = 16) -> PreTrainedModel:
    """A random model of the config's class in float32, with the eager attention that every quirk is written for.

    Windows are `window` tokens at most. Raises whatever transformers raises for a config that cannot be made small.
    """
    try:
        return _built(config, window, 1)
    except Exception:  # layers that share weights need two of a kind, and say so in as many ways as there are
        return _built(config, window, 2)


def _built(config: PreTrainedConfig, window: int, copies: int) -> PreTrainedModel:
    """A miniature with so many layers of each kind."""
    small = AutoConfig.for_model(config.model_type, **_shrunk(config.to_dict(), window, copies))
    small._attn_implementation = "eager"
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(small).num_parameters()
    if weights > LARGEST:
        raise ValueError(f"{weights:,} weights remain")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(small, attn_implementation="eager").float()
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "A_log" not in name:
                weight.mul_(SPREAD)
            elif weight.dim() == 1:  # norms, biases and sinks, which start alike
                weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def _shrunk(raw: dict[str, Any], window: int, copies: int) -> dict[str, Any]:
    """Values of a config, made small."""
    found = {name: value for name, value in raw.items() if name not in LEFT_OUT and not name.startswith("_")}
    heads = next((found[name] for name in ("num_attention_heads", "n_head", "n_heads") if found.get(name)), None)
    width, head = found.get("hidden_size"), found.get("head_dim")
    for name in KEY_HEADS:
        if isinstance(found.get(name), int):
            found[name] = HEADS if found[name] == heads else min(2, found[name])
    for name in SCALED:
        if isinstance(found.get(name), int) and width:
            found[name] = found[name] * WIDTH // width
    found |= {name: _smaller(name, value, window) for name, value in found.items()}
    if isinstance(found.get("attention_head_dim"), int):
        found["attention_head_dim"] = found["attention_hidden_size"] // HEADS
    if isinstance(found.get("mamba_d_ssm"), int):
        found["mamba_d_ssm"] = found["mamba_n_heads"] * found["mamba_d_head"]
    if isinstance(head, int) and width:
        usual = not isinstance(heads, int) or head == width // heads or "qk_rope_head_dim" in found
        found["head_dim"] = HEAD if usual else 2 * HEAD
    for name, value in found.items():
        if isinstance(value, dict) and "model_type" in value:
            found[name] = {**_shrunk(value, window, copies), "model_type": value["model_type"]}
    _cut(found, copies)
    found |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(found.get(name), dict):
            found[name] = _rope(found[name], found)
    return found


def _smaller(name: str, value: Any, window: int) -> Any:
    """A value as large as the miniature may have; those of lists each for itself."""
    if isinstance(value, list):
        return [_smaller(name, entry, window) for entry in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if CAPS.search(name):
        return min(CAP, value) if value > 0 else value
    if isinstance(value, int) and WINDOWS.search(name):
        return min(window, value)
    if name in SCALARS:
        return min(SCALARS[name], value)
    return min(SIZES.get(name, value), value)


def _cut(found: dict[str, Any], copies: int) -> None:
    """Keeps `copies` layers of each kind, at least two in all; lists that have an entry a layer are cut to them."""
    depth = next((found[name] for name in DEPTHS if isinstance(found.get(name), int)), None)
    if depth is None:
        return
    lists = {name: value for name, value in found.items() if isinstance(value, list) and len(value) == depth > 0}
    own = {int(place): values for place, values in (found.get("per_layer_config") or {}).items()}
    kept = list(_kept(depth, lists, own, copies))
    if not lists and not own:
        period = found.get("block_types") or ()
        needed = [2, copies, len(period), *(found[name] for name in PERIODS if isinstance(found.get(name), int))]
        kept = list(range(min(depth, max(needed))))
    found |= {name: [values[place] for place in kept] for name, values in lists.items()}
    if own:
        found["per_layer_config"] = {new: _layer(own[old]) for new, old in enumerate(kept) if old in own}
    found |= {name: [1] for name in PLACES if found.get(name)}
    found |= {name: len(kept) for name in DEPTHS if isinstance(found.get(name), int)}


def _layer(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of one layer, made small."""
    return {name: 2 * HEAD if name == "head_dim" else _smaller(name, value, HEAD) for name, value in values.items()}


def _kept(depth: int, lists: Mapping[str, list[Any]], own: Mapping[int, Any], copies: int) -> Iterator[int]:
    """Places of the layers that stay, in order."""
    kinds = [repr([*(values[place] for values in lists.values()), own.get(place)]) for place in range(depth)]
    copies = copies if len(set(kinds)) > 1 else max(2, copies)
    for place, kind in enumerate(kinds):
        if kinds[:place].count(kind) < copies:
            yield place


def _rope(rope: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings whose lists fit the small heads; those of each layer type if they are given so."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {name: _rope(value, found) if isinstance(value, dict) else value for name, value in rope.items()}
    share = rope.get("partial_rotary_factor") or found.get("partial_rotary_factor") or 1.0
    pairs = int((found.get("head_dim") or HEAD) * share) // 2
    return {
        name: value[:pairs] if isinstance(value, list) and len(value) > pairs else value
        for name, value in rope.items()
        if name != "mrope_section"
    } | ({"mrope_section": _sections(rope["mrope_section"], pairs)} if rope.get("mrope_section") else {})


def _sections(sections: list[int], pairs: int) -> list[int]:
    """As many sections, whose sum is the pairs of dimensions of a small head."""
    rest = [pairs // len(sections)] * (len(sections) - 1)
    return [pairs - sum(rest), *rest]
