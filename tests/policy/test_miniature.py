"""Miniatures keep what makes an architecture what it is: flags, layer types, ratios of heads; only sizes shrink."""

import pytest
import torch
from transformers import AutoConfig

from stagealign.policy.miniature import LARGEST, miniature


def config_of(name, **values):
    return miniature(AutoConfig.for_model(name, **values)).config.get_text_config()


def test_one_layer_of_each_type_stays():
    assert config_of("gemma3_text").layer_types == ["sliding_attention", "full_attention"]
    assert config_of("llama", num_hidden_layers=32).num_hidden_layers == 2
    assert config_of("lfm2", layer_types=["conv", "conv", "full_attention"] * 4, num_hidden_layers=12).layer_types == [
        "conv",
        "full_attention",
    ]


def test_flags_and_ratios_of_heads_stay():
    assert config_of("llama", num_key_value_heads=1).num_key_value_heads == 1
    assert config_of("llama", num_key_value_heads=8).num_key_value_heads == 2
    assert config_of("llama", num_key_value_heads=32).num_key_value_heads == 4
    wide = config_of("qwen3", hidden_size=1024, num_attention_heads=16, head_dim=128)
    assert wide.head_dim * wide.num_attention_heads == 2 * wide.hidden_size
    assert config_of("llama", tie_word_embeddings=True).tie_word_embeddings
    assert config_of("gpt_neox", use_parallel_residual=False).use_parallel_residual is False
    assert config_of("granite", logits_scaling=8.0).logits_scaling == 8.0


@pytest.mark.parametrize("window", [16, 4096])
def test_windows_are_as_long_as_asked_for_at_most(window):
    small = miniature(AutoConfig.for_model("mistral", sliding_window=4096), window)
    assert small.config.sliding_window == window
    assert miniature(AutoConfig.for_model("mistral", sliding_window=7), window).config.sliding_window == 7
    assert config_of("mistral", sliding_window=None).sliding_window is None
    assert config_of("qwen2", use_sliding_window=False).sliding_window is None


def test_caps_are_low_enough_for_random_weights_to_reach():
    small = config_of("gemma2")
    assert (small.attn_logit_softcapping, small.final_logit_softcapping) == (1.0, 1.0)
    assert config_of("gemma2", attn_logit_softcapping=None).attn_logit_softcapping is None


def test_weights_are_the_same_each_time_and_leave_chance_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two = (miniature(AutoConfig.for_model("llama")) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.num_parameters() < LARGEST


def test_a_config_that_stays_large_raises(monkeypatch):
    monkeypatch.setattr("stagealign.policy.miniature.LARGEST", 1000)
    with pytest.raises(ValueError, match="weights remain"):
        miniature(AutoConfig.for_model("llama"))
