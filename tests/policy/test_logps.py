"""Layouts and log-probs: every layout equals one sequence at a time, and only completion positions count."""

import random

import pytest
import torch

from stagealign.base.errors import BadData
from stagealign.data.records import Pair
from stagealign.policy import logps
from stagealign.policy.branches import BLOCK, Branches, branches_of
from stagealign.policy.forward import attention_of, completion_logps, hidden_states
from stagealign.policy.layers import top_of, trunk_of
from stagealign.policy.logps import PairTokens, pack, repack, to_device, unpack
from stagealign.train.reference import reference_logps, trunk_states

SHAPES = ("llama", "neox")
LAYOUTS = {
    "plain": lambda pairs: pack(pairs, "plain"),
    "rows": lambda pairs: pack(pairs, "rows"),
    "branches": pack,
    "branches, each pair alone": lambda pairs: pack(pairs, share=False),
}


def tokens_of(seed, *lengths, shared=0):
    """Random pairs of the given (prompt, chosen, rejected) lengths; `shared` tokens begin every prompt."""
    rng = random.Random(seed)
    one = lambda n: tuple(rng.randrange(1, 257) for _ in range(n))  # noqa: E731
    start = one(shared)
    return [PairTokens(start + one(prompt), one(chosen), one(rejected)) for prompt, chosen, rejected in lengths]


def same_prompt():
    first, second = tokens_of(5, (7, 4, 6), (7, 3, 9))
    return [first, PairTokens(first.prompt, second.chosen, second.rejected)]


CASES = {
    "one pair": tokens_of(0, (6, 5, 3)),
    "unequal prompts": tokens_of(1, (2, 5, 3), (9, 1, 8), (4, 4, 4)),
    "shared prefix": tokens_of(2, (2, 5, 3), (9, 1, 8), (4, 4, 4), shared=11),
    "a prompt that is the prefix": tokens_of(3, (0, 5, 3), (6, 2, 7), shared=8),
    "identical prompts": same_prompt(),
    "an empty rejected": tokens_of(4, (5, 6, 0), (3, 4, 0)),
    "a prompt of one token": tokens_of(6, (1, 3, 3), (1, 2, 5)),
}


def plainly(lm, pairs):
    """Log-probs of chosen and rejected, each sequence alone through the whole model, shape (2 x pairs,)."""
    sums = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            ids = torch.tensor([pair.prompt + completion])
            scores = lm.model(ids).logits[0].log_softmax(-1)
            places = range(len(pair.prompt) - 1, ids.shape[1] - 1)
            sums.append(sum((scores[at, ids[0, at + 1]] for at in places), start=torch.tensor(0.0)))
    return torch.stack(sums)


def close(one, other, tolerance=1e-5):
    """Equal to `tolerance` relative to the size of the values, as fp32 sums are."""
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def near(gradient, expected, tolerance=1e-5):
    """Equal to `tolerance` of the largest entry: what cancels to little is as uncertain as what it is made of."""
    return (gradient - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_layouts_equal_one_sequence_at_a_time(shape, layout, case, tiny):
    lm, pairs = tiny(shape), CASES[case]
    packed = LAYOUTS[layout](pairs)
    found = completion_logps(lm.model, packed)
    assert close(found, plainly(lm, pairs))
    assert packed.lengths.tolist() == [len(c) for p in pairs for c in (p.chosen, p.rejected)]


@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_give_equal_gradients(shape, tiny):
    pairs, found = CASES["shared prefix"], {}
    weights = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    for name in (*LAYOUTS, "one sequence at a time"):
        lm = tiny(shape)
        alone = name == "one sequence at a time"
        sums = plainly(lm, pairs) if alone else completion_logps(lm.model, LAYOUTS[name](pairs))
        (sums * weights).sum().backward()
        found[name] = {key: weight.grad for key, weight in lm.model.named_parameters()}
    for name in LAYOUTS:
        for key, expected in found["one sequence at a time"].items():
            assert near(found[name][key], expected), (name, key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_completion_tokens_are_scored(layout):
    """Targets are the completions and nothing else, each behind the token that predicts it."""
    pairs = CASES["shared prefix"]
    packed = LAYOUTS[layout](pairs)
    completions = [completion for pair in pairs for completion in (pair.chosen, pair.rejected)]
    assert packed.target.tolist() == [token for completion in completions for token in completion]
    assert packed.segment.tolist() == [number for number, completion in enumerate(completions) for _ in completion]
    before = [(pair.prompt[-1:] + one)[:-1] for pair in pairs for one in (pair.chosen, pair.rejected)]
    assert packed.input_ids.flatten()[packed.predictor].tolist() == [token for one in before for token in one]


@pytest.mark.parametrize("layout", ["rows", "branches", "branches, each pair alone"])
def test_the_head_sees_only_what_precedes_a_scored_token(layout, tiny):
    lm, pairs, asked = tiny(), CASES["unequal prompts"], []
    packed = LAYOUTS[layout](pairs)
    lm.head.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    completion_logps(lm.model, packed)
    with attention_of(lm.model, packed.layout):
        hidden = hidden_states(lm.body, packed).flatten(0, 1)
    assert torch.equal(torch.cat(asked), hidden[packed.predictor])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpack_and_repack(layout, case):
    """`unpack` gives the pairs' tokens end to end; `repack` puts them back wherever a token stands."""
    pairs = CASES[case]
    packed = LAYOUTS[layout](pairs)
    end_to_end = torch.tensor([token for p in pairs for token in p.prompt + p.chosen + p.rejected])
    assert torch.equal(unpack(packed.input_ids[..., None], packed)[:, 0], end_to_end)
    back = repack(end_to_end[:, None], packed)[..., 0]
    real = packed.origin >= 0
    assert torch.equal(back[real], packed.input_ids[real])
    assert real.all() or "branches" not in layout


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [1, 2, 3])
@torch.no_grad()
def test_trunk_and_top_equal_the_whole_whatever_the_grouping(group, shape, tiny, monkeypatch):
    """The trunk's output is made in groups by length, laid end to end, and cut into other groups for the top."""
    lm, pairs = tiny(shape), [*CASES["unequal prompts"], *CASES["shared prefix"]]
    states = trunk_states(lm, pairs, 2)
    assert states.shape == (sum(pair.tokens for pair in pairs), 64)
    monkeypatch.setattr(
        "stagealign.train.reference.by_length",
        lambda tokens: [list(range(len(tokens)))[i::group] for i in range(group)],
    )
    through_trunk = reference_logps(lm, pairs, states, 2)
    assert close(through_trunk.flatten(), plainly(lm, pairs))
    assert close(reference_logps(lm, pairs, None, None), through_trunk)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_trunk_and_top_leave_the_model_as_it_was(shape, tiny):
    lm = tiny(shape)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = lm.model(ids).logits
    trunk, top = trunk_of(lm.model, 1), top_of(lm.model, 1)
    assert (len(trunk.layers), len(top.base_model.layers), len(lm.body.layers)) == (3, 1, 4)
    split = top(inputs_embeds=trunk(ids).last_hidden_state).logits
    assert close(split, before)
    assert torch.equal(lm.model(ids).logits, before)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_equal_the_whole_and_so_do_gradients(chunk, tiny):
    pairs, found = CASES["unequal prompts"], []
    for size in (chunk, 1024):
        lm = tiny()
        sums = completion_logps(lm.model, pack(pairs), chunk=size)
        (sums * torch.arange(1.0, 7.0)).sum().backward()
        found.append((sums.detach(), {name: weight.grad for name, weight in lm.model.named_parameters()}))
    assert close(found[0][0], found[1][0])
    for name, gradient in found[1][1].items():
        assert near(found[0][1][name], gradient), name


def test_logits_exist_for_a_chunk_at_a_time(tiny, monkeypatch):
    sizes = []
    plain = logps._token_logps
    monkeypatch.setattr(logps, "_token_logps", lambda h, t, head: sizes.append(len(t)) or plain(h, t, head))
    with torch.no_grad():
        completion_logps(tiny().model, pack(CASES["unequal prompts"]), chunk=10)
    assert sizes == [10, 10, 5]


def test_every_token_is_computed_once():
    """Prompt, chosen and rejected once a pair, and what all prompts share once for all pairs; nothing is padded."""
    pairs = CASES["shared prefix"]
    assert pack(pairs).input_ids.shape == (1, 11 + sum(pair.tokens - 11 for pair in pairs))
    assert pack(pairs, share=False).input_ids.shape == (1, sum(pair.tokens for pair in pairs))
    assert pack(pairs, "rows").input_ids.shape == (6, 28)


def test_branches_by_hand():
    """Two pairs of (prompt, chosen, rejected) lengths (2, 2, 1) and (1, 1, 1)."""
    packed = pack(tokens_of(3, (2, 2, 1), (1, 1, 1)))
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1]]
    assert packed.origin.tolist() == [[*range(8)]]
    assert packed.predictor.tolist() == [1, 2, 1, 5, 5]
    (group,) = packed.branches.groups
    assert group.shape == (4, BLOCK)
    assert [row[:length] for row, length in zip(group.tolist(), (4, 3, 2, 2), strict=True)] == [
        [0, 1, 2, 3], [0, 1, 4], [5, 6], [5, 7]
    ]  # fmt: skip
    assert packed.branches.first.tolist() == [0, 1, 2, 3, BLOCK + 2, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 1]
    rows = pack(tokens_of(3, (2, 2, 1), (1, 1, 1)), "rows")
    assert rows.origin.tolist() == [[0, 1, 2, 3], [0, 1, 4, -1], [5, 6, -1, -1], [5, 7, -1, -1]]


def test_sequences_of_one_block_length_are_a_group():
    sequences = [torch.arange(n) for n in (5, BLOCK, BLOCK + 1, 3 * BLOCK)]
    found = branches_of(sequences, 3 * BLOCK)
    assert [tuple(group.shape) for group in found.groups] == [(1, 3 * BLOCK), (1, 2 * BLOCK), (2, BLOCK)]
    assert found.first[:5].tolist() == [5 * BLOCK + n for n in range(5)], "the first sequence computes what all have"
    assert found.first[-1] == 3 * BLOCK - 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_moves_to_a_device_as_a_whole(layout):
    packed = LAYOUTS[layout](CASES["unequal prompts"])
    moved = to_device(packed, torch.device("meta"))
    for name, value in vars(packed).items():
        there = getattr(moved, name)
        if isinstance(value, Branches):
            assert {part.device.type for part in (*there.groups, there.first)} == {"meta"}
        elif isinstance(value, torch.Tensor):
            assert there.device.type == "meta", name
        else:
            assert there == value


PAIR = Pair("Is it good?", " Yes.", " No, not at all.", "off", 1.0)


def test_end_is_scored_unless_the_completion_was_truncated(tiny):
    lm = tiny()
    ended = lm.pair_tokens(PAIR, 512)
    assert (ended.chosen[-1], ended.rejected[-1]) == (0, 0)
    assert (len(ended.chosen), len(ended.rejected), ended.cut) == (6, 17, 0)
    truncated = Pair("Is it good?", " Yes.", " No, not at all.", "on", 1.0, chosen_truncated=True)
    assert lm.pair_tokens(truncated, 512).chosen == ended.chosen[:-1]
    assert lm.pair_tokens(truncated, 512).rejected == ended.rejected


def test_max_length_cuts_completions_and_counts_them(tiny):
    lm = tiny()
    whole, cut = lm.pair_tokens(PAIR, 512), lm.pair_tokens(PAIR, 20)
    assert (cut.prompt, cut.chosen, cut.rejected, cut.cut) == (whole.prompt, whole.chosen, whole.rejected[:9], 1)
    assert lm.pair_tokens(PAIR, 12).cut == 2
    with pytest.raises(BadData, match=r"11 tokens leave no room .* max_length 11"):
        lm.pair_tokens(PAIR, 11)


def test_chat_template_stands_in_the_prompt_only(tiny):
    lm = tiny(chat=True)
    tokens = lm.pair_tokens(PAIR, 512)
    assert lm.tokenizer.decode(tokens.prompt) == "<user>Is it good?\n<assistant>"
    assert tokens.chosen == tiny().pair_tokens(PAIR, 512).chosen
