"""Which architectures can be a policy at all, by their config."""

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)


def not_causal(config: Any) -> str:
    """What a config is instead of a model that writes text from text alone, left to right; empty if it is one."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder with a decoder"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        wrapper = "with parts for images or sound, " if config.get_text_config() is not config else ""
        return f"{wrapper}which transformers has no causal language model for"
    if getattr(config, "causal", None) is False:  # XLM as it was trained at first
        return "trained to fill gaps (its config says `causal: false`)"
    # BERT's kin: the same class reads to both sides unless its config says that it is a decoder.
    turned = getattr(config, "is_decoder", None) or getattr(config, "causal", None)
    bidirectional = getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention")
    if not turned and (bidirectional or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return "an encoder that reads ahead (its config does not say `is_decoder`)"
    return ""
