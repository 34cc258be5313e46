"""The contract of log-probs: for every causal architecture they and their gradient are the model's own."""

import math
from functools import cache

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stagealign.policy.dropout import DROP, NOISE, without_dropout
from stagealign.policy.forward import arithmetic, completion_logps, layout_of
from stagealign.policy.logps import PairTokens, pack
from stagealign.policy.miniature import miniature
from stagealign.train.losses import Constants, Logps, sigmoid

FAST = ("cohere", "cohere2", "exaone4", "gemma", "gemma2", "gemma3_text", "gpt_neox", "gpt_oss", "granite", "llama",
        "mistral", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "starcoder2")  # fmt: skip
PADDED = ("codegen", "falcon", "gpt_neo", "gptj", "mpt", "stablelm")
"""Layers of these do not tell their attention where a sequence begins, or have an attention of their own."""
SLOW = ("falcon_h1", "falcon_mamba", "hrm_text", "nemotron_h", "rwkv")
"""Seconds each: their layers are loops over tokens."""
NO_DECODERS = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
               "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
               "xmod")  # fmt: skip
WINDOW = 16
PAIRS = [
    PairTokens((*range(3, 30), *range(40, 40 + 5 * n)), tuple(range(20, 38 + 3 * n)), tuple(range(70, 79 - n)))
    for n in range(3)
]
"""Prompts that share a start of more tokens than a window has, completions of other lengths."""


@cache
def built(name):
    """A small model of an architecture, with every rate of chance that its config has; None if none builds."""
    try:
        config = AutoConfig.for_model(name)
        if config.is_encoder_decoder:
            return None
        for key, value in list(vars(config).items()):
            if isinstance(value, float) and (DROP in key or NOISE in key):
                setattr(config, key, 0.2)
        model = miniature(config, WINDOW)
        with torch.inference_mode():
            one_at_a_time(model, PAIRS[:1])
    except Exception:  # each architecture has errors of its own; how many remain is counted below
        return None
    return model


def one_at_a_time(model, pairs):
    """Log-probs of chosen and rejected by the model's own forward on one unpadded sequence, shape (pairs, 2)."""
    sums = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            ids = torch.tensor([pair.prompt + completion])
            scores = model(ids, use_cache=False).logits[0].log_softmax(-1)
            before = torch.arange(len(pair.prompt) - 1, ids.shape[1] - 1)
            sums.append(scores[before, ids[0, before + 1]].sum())
    return torch.stack(sums).view(-1, 2)


def gradient(model, logps):
    """Gradient of the DPO loss by every weight, end to end; the reference is another model."""
    shift = torch.linspace(-1, 1, logps.numel()).view(-1, 2)
    reference = logps.detach() + shift
    lengths = torch.ones(logps.shape)
    loss = sigmoid(Logps(*logps.T, *reference.T, *lengths.T), Constants(0.1)).mean()
    model.zero_grad()
    loss.backward()
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]
    return torch.cat([part.flatten() for part in found])


NAMES = [name for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if name not in NO_DECODERS]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
def test_log_probs_and_gradient_are_the_models_own(name):
    """In training mode with dropout rates in the config: the first loss of DPO is ln 2 to 1e-6."""
    model = built(name)
    if model is None:
        pytest.skip("no small model of it builds")
    packed = pack(PAIRS, layout_of(model))
    expected = one_at_a_time(model.eval(), PAIRS)
    own = gradient(model, expected)
    model.train()
    without_dropout(model)
    found = completion_logps(model, packed).view(-1, 2)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert (gradient(model, found) - own).norm() <= 1e-4 * own.norm()
    with torch.no_grad():
        policy, reference = (completion_logps(model, packed).view(-1, 2) for _ in range(2))
        first = sigmoid(Logps(*policy.T, *reference.T, *packed.lengths.view(-1, 2).T), Constants(0.1))
    assert first.tolist() == pytest.approx([math.log(2)] * len(PAIRS), abs=1e-6)


def test_the_contract_covers_most_architectures():
    assert sum(built(name) is not None for name in NAMES if name not in SLOW) >= 85


@pytest.mark.parametrize("name", FAST)
def test_what_is_fast(name):
    assert layout_of(built(name)) == "branches"


@pytest.mark.parametrize("name", PADDED)
def test_what_is_padded(name):
    """In 16 bits padding moves log-probs, so these take their own forward, unpadded."""
    assert layout_of(built(name)) == "rows"
    assert layout_of(built(name), "bfloat16") == "plain"


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
@torch.inference_mode()
def test_at_16_bits_a_batch_changes_nothing(name):
    """Bit for bit: in any order, with any neighbours, and beside prompts that share a start."""
    model = built(name).eval()
    layout = layout_of(model, "bfloat16")

    def logps(pairs):
        with arithmetic("bfloat16", model.device):
            return completion_logps(model, pack(pairs, layout, share=False)).view(-1, 2)

    together = logps(PAIRS)
    assert torch.equal(together, torch.cat([logps([pair]) for pair in PAIRS]))
    assert torch.equal(together, logps(PAIRS[::-1]).flip(0))
    assert not torch.equal(together, completion_logps(model, pack(PAIRS)).view(-1, 2)), "it was in 16 bits"
