"""What a context leaves for completions: caps that are part of what is sampled, prompts dropped by name."""

from dataclasses import replace

import pytest
import torch

from stagealign.base.errors import BadData
from stagealign.base.identity import plain
from stagealign.data.records import Candidate, Pair, Prompt, prompt_hash, read_rows, write_rows
from stagealign.grid.spec import Decoding
from stagealign.policy import lm as lms
from stagealign.policy import sample as sampler
from stagealign.policy.context import FILLED, TOO_LONG, context_of, left_out, room, rooms, trainable
from stagealign.policy.draw import draws
from stagealign.policy.general import general_rows
from stagealign.policy.sample import generate, sample
from stagealign.store.artifact import Work

DECODING = Decoding(max_new_tokens=24)
FILMS = ("Jaws", "The Unbearable Lightness of Being", "Heat")
PROMPTS = [Prompt(f"Review the film {title}.", "train") for title in FILMS]
LONG = Prompt("word " * 40, "train")


def with_context(lm, tokens):
    lm.model.config.max_position_embeddings = tokens
    return lm


def endless(lm):
    """The same model, whose completions hardly end by themselves."""
    with torch.no_grad():
        lm.head.weight[0] = 0
    return lm


def test_rooms_by_hand(tiny):
    lm = with_context(tiny(), 30)
    found = rooms(lm, {"a": [1] * 6, "b": [1] * 7, "c": [1] * 29, "d": [1] * 30, "e": [1] * 99}, DECODING)
    assert found.most == {"a": 24, "b": 23, "c": 1}
    assert found.facts == {"capped": 2, "drops": {FILLED: 2}, "dropped": {"d": 30, "e": 99}}
    assert rooms(lm, {"a": [1]}, DECODING).facts == {"capped": 0, "drops": {}, "dropped": {}}


@pytest.mark.parametrize("limit", [None, -1])
def test_an_architecture_without_a_limit_caps_nothing(limit, tiny):
    lm = tiny()
    object.__setattr__(lm.model.config, "max_position_embeddings", limit)
    assert context_of(lm) is None
    assert room(lm, 10**6, DECODING) == 24


@pytest.mark.parametrize("shape", ["llama", "neox"])
@pytest.mark.parametrize("written", ["sample", "general"])
def test_a_capped_completion_is_the_start_of_the_uncapped_one(written, shape, tiny):
    """The same draws; only the context of the second model is shorter, and positions are rotary."""
    whole, short = endless(tiny(shape)), with_context(endless(tiny(shape)), 60)
    ids = [whole.prompt_ids(prompt.text) for prompt in PROMPTS]
    chance = [[draws(3, prompt.hash, j, 24) for j in range(2)] for prompt in PROMPTS]

    def texts(lm):
        if written == "sample":
            return generate(lm, ids, chance, DECODING)
        return [dict(general_rows(lm, ids, chance, DECODING))[i] for i in range(len(ids))]

    seen = set()
    for prompt, free, capped in zip(ids, texts(whole), texts(short), strict=True):
        most = min(24, 60 - len(prompt))
        seen.add(most)
        for one, other in zip(free, capped, strict=True):
            assert other.ids == one.ids[:most]
            assert other.ended == (one.ended and len(one.ids) < most)
    assert len(seen) > 1, "prompts of several lengths have caps of their own"


def test_a_prompt_that_fills_the_context_is_refused_by_name(tiny):
    lm = with_context(tiny(), 100)
    with pytest.raises(BadData, match=r"prompt '.*': its 200 tokens fill the policy's context of 100; shorten it"):
        sample(lm, [*PROMPTS, LONG], DECODING, 1, seed=0)
    with pytest.raises(BadData, match=r"prompt 'number 2': its 200 tokens"):
        generate(lm, [[1], [1] * 200], [[torch.zeros(24)]] * 2, DECODING)


@pytest.fixture
def work(tmp_path, tiny):
    """Factory of the work of sampling prompts from a policy of context 64 on bytes."""
    lms.save(with_context(tiny(), 64), tmp_path / "policy")

    def build(prompts, name="out", **params):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-prompts").mkdir()
        write_rows(tmp_path / f"{name}-prompts" / "prompts.jsonl", prompts)
        given = {"decoding": plain(DECODING), "count": 2, "splits": ["train"], "seed": 5, "dtype": "float32"}
        inputs = {"policy": tmp_path / "policy", "prompts": tmp_path / f"{name}-prompts"}
        return Work({**given, **params}, inputs, tmp_path / name, tmp_path)

    return build


def test_a_long_prompt_is_a_counted_drop_and_changes_no_other_text(work):
    with_long, without = work([PROMPTS[0], LONG, *PROMPTS[1:]]), work(PROMPTS, "without")
    facts, plain_facts = sampler.build(with_long), sampler.build(without)
    assert (facts["candidates"], facts["capped"]) == (6, 1), "of the long title"
    assert facts["drops"] == {FILLED: 1}
    assert facts["dropped"] == {LONG.hash: 200}
    assert (plain_facts["drops"], plain_facts["dropped"]) == ({}, {})
    rows = [read_rows(each.out / "candidates.jsonl", Candidate) for each in (with_long, without)]
    assert rows[0] == rows[1]


def test_nothing_to_sample_is_an_error_unless_it_is_a_part(work):
    with pytest.raises(BadData, match=r"each of 1 prompts fills the policy's context of 64 tokens"):
        sampler.build(work([LONG]))
    facts = sampler.build(work([LONG, PROMPTS[0]], "part", part=[1, 2]))
    assert (facts["candidates"], facts["drops"]) == (0, {FILLED: 1})


def test_pairs_that_training_cannot_hold_are_left_out_by_name(tiny):
    """The prompt has bytes as tokens; one token of room is enough."""
    lm = tiny()
    pairs = [Pair("x" * length, "good", "bad", "off", 1.0) for length in (9, 10, 11)]
    kept, dropped = trainable(lm, pairs, 10)
    assert [len(pair.prompt) for pair in kept] == [9]
    assert dropped == {prompt_hash("x" * 10): 10, prompt_hash("x" * 11): 11}
    assert left_out(dropped) == {"drops": {TOO_LONG: 2}, "dropped": dropped}
    assert lm.pair_tokens(kept[0], 10).tokens == 11
    with pytest.raises(BadData, match="each of 2 prompts fills max_length 10; raise it"):
        trainable(lm, pairs[1:], 10)


def test_the_cap_is_the_decodings_where_that_is_smaller(tiny):
    lm = with_context(tiny(), 512)
    assert room(lm, 100, replace(DECODING, max_new_tokens=7)) == 7
