"""Which architectures can be a policy at all, by their config; refused before weights are read."""

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stagealign.base.errors import StagealignError


def check_causal(config: Any, name: str) -> None:
    """Raises StagealignError for an architecture that does not write text from text alone, left to right."""
    why = not_causal(config)
    if why:
        raise StagealignError(
            f"checkpoint {name!r}: model type {config.model_type!r} is {why}; a policy must be a causal "
            "language model: name one, or serve the checkpoint and give --policy-url"
        )


def not_causal(config: Any) -> str:
    """What a config is instead of a causal language model; empty if it is one."""
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder and a decoder"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "no causal language model of the installed transformers"
    # BERT's kin: the same class reads to both sides unless its config says that it is a decoder.
    if getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        return "an encoder (its config does not say `is_decoder`)"
    if getattr(config, "causal", None) is False:  # XLM as it was trained at first
        return "trained to fill gaps (its config says `causal: false`)"
    return ""
