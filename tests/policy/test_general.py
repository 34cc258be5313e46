"""The general path: batches of `generate` as large as they may be, and nothing of the checkpoint's own decoding."""

from types import SimpleNamespace

import pytest
import torch
from transformers import StableLmConfig, StableLmForCausalLM

from stagealign.grid.spec import Decoding
from stagealign.policy.general import ROWS, general_rows, room
from stagealign.policy.lm import LanguageModel

DRAWN = Decoding(temperature=1.0, top_p=0.9, top_k=50, max_new_tokens=6)
LENGTHS = [3 + i % 9 for i in range(40)]


@pytest.fixture
def lm():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = StableLmConfig(vocab_size=96, num_key_value_heads=4, max_position_embeddings=64, **sizes)
    model = StableLmForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    model.generation_config.eos_token_id = [2, 3, 4, 5]
    return LanguageModel(model, SimpleNamespace(eos_token_id=2, pad_token_id=0))


def prompts():
    return [[(7 * i + 5 * j) % 90 + 6 for j in range(length)] for i, length in enumerate(LENGTHS)]


def chance(count, each=1):
    generator = torch.Generator().manual_seed(1)
    return [[torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(each)] for _ in range(count)]


def sampled(lm, batches, each=1, **more):
    return dict(general_rows(lm, prompts(), chance(len(LENGTHS), each), DRAWN, batches=batches, **more))


def test_padded_equal_and_single_rows_write_the_same(lm):
    padded, equal, single = (sampled(lm, batches) for batches in ("padded", "equal", "single"))
    assert {i: rows[0].ids for i, rows in padded.items()} == {i: rows[0].ids for i, rows in single.items()}
    assert {i: rows[0].ids for i, rows in equal.items()} == {i: rows[0].ids for i, rows in single.items()}
    assert len({rows[0].ended for rows in single.values()}) == 2
    for i, (row,) in padded.items():
        assert row.logp == pytest.approx(single[i][0].logp, abs=2e-3)


def test_candidates_keep_their_place_across_batches(lm):
    """Three candidates a prompt and batches of four: a prompt's candidates meet in two calls."""
    three, one = sampled(lm, "padded", 3, rows=4), sampled(lm, "single", 3)
    assert three.keys() == one.keys() == set(range(len(LENGTHS)))
    assert [[row.ids for row in three[i]] for i in sorted(three)] == [[row.ids for row in one[i]] for i in sorted(one)]


@pytest.mark.parametrize(("batches", "calls"), [("padded", -(-40 // ROWS)), ("equal", 9), ("single", 40)])
def test_calls_of_generate_are_as_few_as_may_be(batches, calls, lm, monkeypatch):
    """Plain batches of `generate` make as many calls and steps, so the general path costs what they cost."""
    widths = []
    own = lm.model.generate
    monkeypatch.setattr(lm.model, "generate", lambda **given: widths.append(len(given["input_ids"])) or own(**given))
    sampled(lm, batches)
    assert len(widths) == calls
    assert sum(widths) == len(LENGTHS)
    assert max(widths) <= ROWS


def test_what_generation_config_says_of_decoding_is_not_used(lm):
    before = sampled(lm, "padded")
    lm.model.generation_config.update(repetition_penalty=5.0, min_new_tokens=6, suppress_tokens=list(range(6, 60)))
    config = lm.model.generation_config
    assert sampled(lm, "padded") == before
    assert lm.model.generation_config is config


def test_end_tokens_of_generation_config_end_a_text(lm):
    lm.model.generation_config.eos_token_id = list(range(96))
    assert all(rows[0].ended and rows[0].ids == () for rows in sampled(lm, "padded").values())


def test_rows_near_the_end_of_the_context_have_a_batch_of_their_own(lm):
    long = [[5] * 60, [6] * 61, [7] * 5]
    found = dict(general_rows(lm, long, chance(3), Decoding(temperature=0.0, max_new_tokens=6), batches="padded"))
    assert [len(found[i][0].ids) + found[i][0].ended for i in range(2)] <= [4, 3]
    assert [room(lm, tokens, DRAWN) for tokens in (60, 61, 5)] == [4, 3, 6]


def test_penalties_of_the_decoding_hold(lm):
    strict = Decoding(temperature=0.0, frequency_penalty=1000.0, max_new_tokens=6)
    found = general_rows(lm, prompts()[:4], chance(4), strict, batches="padded")
    assert all(len(set(row.ids)) == len(row.ids) for _, (row,) in found)
