"""Every causal architecture of the installed transformers: its texts are those of `generate`, whatever the batch.

Miniatures with random weights stand for the architectures; windows are shorter than the prompts, and caps, scalings and
sinks move the logits.
"""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import BertConfig, GenerationConfig, LlamaConfig, LlavaConfig, T5Config, XLMConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architectures import (
    DOCS,
    END,
    MEANING,
    README,
    START,
    config_of,
    look,
    row_of,
    summary,
    written,
)
from stagealign.base.errors import StagealignError
from stagealign.grid.spec import Decoding
from stagealign.policy import paths
from stagealign.policy.architectures import not_causal
from stagealign.policy.lm import LanguageModel
from stagealign.policy.miniature import miniature
from stagealign.policy.paths import key_of, proved
from stagealign.policy.roles import check_causal
from stagealign.policy.sample import generate

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
FAST = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "phi3", "gpt_neox")
STEPS = 4
GREEDY = Decoding(temperature=0.0, max_new_tokens=STEPS)
DRAWN = Decoding(temperature=1.0, top_p=1.0, top_k=96, max_new_tokens=STEPS)
SHARED = [(11 * i) % 90 + 5 for i in range(22)]
"""Longer than the miniature's window."""
PROMPTS = ([*SHARED, 31, 32, 33], [*SHARED, *range(40, 60)], [9, 8, 7])
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
ORIGINAL = "original_max_position_embeddings"
VARIANTS = {
    "mistral, no window": ("mistral", {"sliding_window": None}, True),
    "qwen2, no window asked for": ("qwen2", {"use_sliding_window": False}, True),
    "qwen2, some windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, True),
    "qwen2, all windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, True),
    "phi3, a window": ("phi3", {"sliding_window": 2047}, True),
    "phi3, partial rotary": ("phi3", {"partial_rotary_factor": 0.75}, True),
    "phi3, longrope": ("phi3", {"rope_parameters": {**LONG, ORIGINAL: 4096}, ORIGINAL: 4096}, True),
    "gemma2, no cap": ("gemma2", {"attn_logit_softcapping": None}, True),
    "gemma2, no final cap": ("gemma2", {"final_logit_softcapping": None}, True),
    "gemma3, full attention only": ("gemma3_text", {"layer_types": ["full_attention"] * 26}, True),
    "starcoder2, a window": ("starcoder2", {"sliding_window": 4096}, True),
    "llama, many queries a key": ("llama", {"num_key_value_heads": 1}, True),
    "llama, wide heads": ("llama", {"head_dim": 256}, True),
    "llama, tied head": ("llama", {"tie_word_embeddings": True}, True),
    "llama, yarn": ("llama", {"rope_parameters": YARN}, True),
    "llama, llama3 scaling": ("llama", {"rope_parameters": {**LLAMA3, ORIGINAL: 256}}, True),
    "neox, no parallel residual": ("gpt_neox", {"use_parallel_residual": False}, True),
    "phi, norms of queries and keys": ("phi", {"qk_layernorm": True}, True),
    "granite, scalings": ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.3}, True),
    "falcon, ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}, False),
    "falcon, new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8}, False),
    "stablelm, norms of queries and keys": ("stablelm", {"qk_layernorm": True}, False),
    "stablelm, parallel residual": ("stablelm", {"use_parallel_residual": True}, False),
    "lfm2, convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"] * 16}, False),
}
"""By name: model type, values of its config, whether it is fast."""


def lm_of(model):
    model.generation_config.eos_token_id = [2, 17, 43]
    return LanguageModel(model, SimpleNamespace(eos_token_id=2, pad_token_id=0))


def of_generate(lm, prompt):
    """Greedy tokens that `generate` gives of one unpadded prompt, up to an end token."""
    ids = torch.tensor([prompt])
    config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, eos_token_id=[2, 17, 43], pad_token_id=0)
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    written = out[0, len(prompt) :].tolist()
    return tuple(written[: next((i for i, token in enumerate(written) if token in (2, 17, 43)), STEPS)])


def check_contract(config, path, monkeypatch):
    """Greedy texts equal `generate`, with a shared prefix and without; drawn ones do not depend on batch or order."""
    lm = lm_of(miniature(config))
    monkeypatch.setitem(paths._PATHS, lm.model, path)
    expected = [of_generate(lm, prompt) for prompt in PROMPTS]
    zeros = [[torch.zeros(STEPS, dtype=torch.float64)]]
    for places in ((0, 1), (0, 1, 2)):
        found = generate(lm, [PROMPTS[i] for i in places], zeros * len(places), GREEDY)
        assert [row.ids for (row,) in found] == [expected[i] for i in places]
    chance = [[torch.rand(STEPS, dtype=torch.float64) for _ in range(2)] for _ in PROMPTS]
    together = generate(lm, PROMPTS, chance, DRAWN)
    apart = generate(lm, PROMPTS[::-1], chance[::-1], DRAWN, rows=1)[::-1]
    for rows, others in zip(together, apart, strict=True):
        assert [(row.ids, row.ended) for row in rows] == [(row.ids, row.ended) for row in others]
        assert [row.logp for row in rows] == pytest.approx([row.logp for row in others], abs=5e-3)


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def documented(path):
    """Names that `docs/architectures.md` has for a path."""
    between = DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    (row,) = [line for line in between.splitlines() if line.startswith(f"| **{path}**")]
    names = re.findall(r"`([\w.-]+)`", row.rsplit("|", 2)[1])
    assert int(row.split("|")[2]) == len(names)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_writes_what_generate_writes(name, monkeypatch):
    """And stands in the table of docs/architectures.md where it belongs."""
    found = look(name)
    assert name in documented(found.path), "run `python -m benchmarks.architectures --write`"
    assert found.path == "fast" or name not in FAST
    if found.path in ("fast", "general"):
        config = config_of(name)
        check_contract(config, proved(key_of(config)), monkeypatch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_writes_what_generate_writes(variant, monkeypatch):
    name, values, fast = VARIANTS[variant]
    config = config_of(name, **values)
    path = proved(key_of(config))
    assert row_of(path)[0] == ("fast" if fast else "general"), path.why
    check_contract(config, path, monkeypatch)


def test_the_table_is_of_the_installed_transformers():
    assert f"With transformers {transformers.__version__}:" in DOCS.read_text(encoding="utf-8")
    assert sorted(name for path in MEANING for name in documented(path)) == NAMES
    assert len(documented("fast")) + len(documented("general")) >= 45


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (T5Config(), "'t5', an encoder with a decoder"),
        (BertConfig(), "'bert', an encoder that reads ahead"),
        (LlavaConfig(), "'llava', with parts for images or sound"),
        (XLMConfig(), "'xlm', trained to fill gaps"),
    ],
    ids=lambda given: getattr(given, "model_type", ""),
)
def test_what_is_no_causal_language_model_is_refused(config, why):
    with pytest.raises(StagealignError, match=why) as error:
        check_causal("folder", config, {})
    assert "\n" not in str(error.value)
    assert "--policy-url" in str(error.value)


def test_a_causal_language_model_is_not_refused():
    assert not_causal(LlamaConfig()) == not_causal(BertConfig(is_decoder=True)) == ""


def test_the_readme_shows_the_table_in_short():
    readme = README.read_text(encoding="utf-8")
    made = summary(DOCS.read_text(encoding="utf-8"))
    assert written(readme, made) == readme, "run `python -m benchmarks.architectures --write`"
    assert all(str(len(documented(path))) in made for path in MEANING)
