"""Proof and guard of the fast path: what our attention leaves out is noticed, and then the general path is taken."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.architectures import config_of
from stagealign.base.errors import StagealignError
from stagealign.grid.spec import Decoding
from stagealign.policy import paths, prefix_cache
from stagealign.policy.lm import LanguageModel
from stagealign.policy.paths import SamplingPath, guard, key_of, path_of, proved
from stagealign.policy.prefix_cache import ScoreRules
from stagealign.policy.sample import generate

GREEDY = Decoding(temperature=0.0, max_new_tokens=6)


def lm_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return LanguageModel(model, SimpleNamespace(eos_token_id=2, pad_token_id=0))


def small(name, **values):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    return config_of(name, **{**sizes, "vocab_size": 96, "head_dim": 8, "num_key_value_heads": 2, **values})


BROKEN = {
    "no window": ("mistral", lambda rules: replace(rules, window=None)),
    "a window one too long": ("mistral", lambda rules: replace(rules, window=rules.window and rules.window + 1)),
    "a window one too short": ("gemma3_text", lambda rules: replace(rules, window=rules.window and rules.window - 1)),
    "no cap": ("gemma2", lambda rules: replace(rules, cap=None)),
    "another cap": ("gemma2", lambda rules: replace(rules, cap=rules.cap and 1.1 * rules.cap)),
    "no sinks": ("gpt_oss", lambda rules: replace(rules, sinks=None)),
}
"""By what our attention then does wrong: an architecture, and the rules of its layers changed."""


@pytest.mark.parametrize("fault", BROKEN)
def test_a_faulty_attention_is_not_proved(fault, monkeypatch):
    name, change = BROKEN[fault]
    key = key_of(config_of(name))
    assert proved(key).fast
    monkeypatch.setattr(prefix_cache, "ScoreRules", lambda *given: change(ScoreRules(*given)))
    assert proved.__wrapped__(key).why == "the architecture computes something that our attention does not"


def test_positions_that_are_off_by_one_are_not_proved(monkeypatch):
    read = prefix_cache.PrefixCache.read
    monkeypatch.setattr(
        prefix_cache.PrefixCache, "read", lambda cache, asked, own, tokens: read(cache, asked + 1, own, tokens)
    )
    assert not proved.__wrapped__(key_of(config_of("llama"))).fast


def test_a_miniature_that_reads_nothing_proves_nothing(monkeypatch):
    monkeypatch.setattr(paths, "SEEN", 1e9)
    assert "too little" in proved.__wrapped__(key_of(config_of("llama"))).why


def test_the_guard_can_only_demote(monkeypatch):
    lm = lm_of(small("llama"))
    assert guard(lm) == ""
    assert proved(key_of(lm.model.config)).fast
    monkeypatch.setattr(
        paths, "fast_logits", lambda *given: torch.zeros(1, 1, 96).index_fill(2, torch.tensor([3]), 5.0)
    )
    path = path_of(lm)
    assert not path.fast
    assert "on its weights" in path.why
    assert path.batches == "equal", "rows of one length were tried on the real weights"
    general = lm_of(small("stablelm"))
    monkeypatch.setattr(paths, "guard", lambda lm: "")
    assert not path_of(general).fast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_guard_allows_for_the_rounding_of_a_dtype(dtype):
    lm = lm_of(small("gemma2"))
    lm.model.to(dtype)
    assert guard(lm) == ""
    assert proved(key_of(lm.model.config)).fast


def test_the_path_is_found_once_and_the_model_stays_as_it_was(monkeypatch):
    lm = lm_of(small("llama"))
    before = lm.model.config._attn_implementation
    path = path_of(lm)
    monkeypatch.setattr(paths, "proved", None)
    assert path_of(lm) is path
    assert lm.model.config._attn_implementation == before
    assert (path.name, path.sampler) == ("fast", "our own sampler")


def test_a_model_that_generate_fails_on_is_refused_in_one_line(monkeypatch):
    """Jamba without a layer of attention: transformers' own cache refuses it."""
    lm = lm_of(config_of("jamba", hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=96))
    with pytest.raises(
        StagealignError, match="model type 'jamba': transformers' generate fails on text alone"
    ) as error:
        path_of(lm)
    assert "\n" not in str(error.value)


def test_rotary_frequencies_that_change_with_length_are_sampled_alone_beyond_it(monkeypatch):
    """Phi-3's longrope: a row beyond the original context has other frequencies, also for what stands beside it."""
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    original = {"original_max_position_embeddings": 64}
    config = small("phi3", rope_parameters={**long, **original}, max_position_embeddings=256, **original)
    lm = lm_of(config)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    path = path_of(lm)
    assert (path.fast, path.longest) == (True, 64)
    prompts = [[5, 6, 7], [(7 * i) % 90 + 4 for i in range(70)], [5, 6, 9, 8], [(5 * i) % 90 + 4 for i in range(61)]]
    zeros = [[torch.zeros(6)]]
    together = generate(lm, prompts, zeros * 4, GREEDY)
    for prompt, (row,) in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        own = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert list(row.ids) == [token for token in own[0, len(prompt) :].tolist() if token != 2]


def test_the_guard_takes_less_than_a_second_for_135m_weights():
    """SmolLM2's shape with random weights; the miniature's proof is counted too."""
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    lm = LanguageModel(LlamaForCausalLM(config).eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0))
    start = time.process_time()
    assert path_of(lm) == SamplingPath(True, batches="single")
    assert time.process_time() - start < 3.0, "one second alone on a core; a busy machine gets three"


def test_a_config_that_cannot_be_read_again_is_not_proved():
    """A property without a setter, as Falcon's head size: no traceback, the general path."""
    config = AutoConfig.for_model("falcon")
    key = key_of(config).replace('"alibi"', '"head_dim": 64, "alibi"')
    path = proved(key)
    assert not path.fast
    assert "no miniature" in path.why
