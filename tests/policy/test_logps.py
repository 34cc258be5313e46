"""Layouts and log-probs: every layout equals one sequence at a time, and only completion positions count."""

import random

import pytest
import torch

from stagealign.base.errors import BadData
from stagealign.data.records import Pair
from stagealign.policy import logps
from stagealign.policy.layers import top_of, trunk_of
from stagealign.policy.logps import (
    PairTokens,
    _cost,
    completion_logps,
    into_rows,
    pack,
    pack_rows,
    pack_trees,
    repack,
    to_device,
    token_logps,
    unpack,
)
from stagealign.train.reference import hidden_states, reference_logps, trunk_states

SHAPES = ("llama", "neox")
LAYOUTS = {
    "rows": pack_rows,
    "one tree": lambda pairs: pack_trees(pairs, [range(len(pairs))]),
    "two trees": lambda pairs: pack_trees(pairs, into_rows([one.tokens for one in pairs], min(2, len(pairs)))),
    "a tree a pair": lambda pairs: pack_trees(pairs, [[number] for number in range(len(pairs))]),
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
    found = completion_logps(hidden_states(lm.body, packed), lm.head, packed)
    assert close(found, plainly(lm, pairs))
    assert packed.lengths.tolist() == [len(c) for p in pairs for c in (p.chosen, p.rejected)]


@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_give_equal_gradients(shape, tiny):
    pairs, found = CASES["shared prefix"], {}
    weights = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    for name in (*LAYOUTS, "plain"):
        lm = tiny(shape)
        if name == "plain":
            sums = plainly(lm, pairs)
        else:
            packed = LAYOUTS[name](pairs)
            sums = completion_logps(hidden_states(lm.body, packed), lm.head, packed)
        (sums * weights).sum().backward()
        found[name] = {key: weight.grad for key, weight in lm.model.named_parameters()}
    for name in LAYOUTS:
        for key, expected in found["plain"].items():
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompt_and_padding_positions_get_no_gradient(layout, tiny):
    lm, pairs = tiny(), CASES["unequal prompts"]
    packed = LAYOUTS[layout](pairs)
    hidden = hidden_states(lm.body, packed).detach().requires_grad_()
    completion_logps(hidden, lm.head, packed).sum().backward()
    touched = hidden.grad.abs().sum(-1).flatten().nonzero()[:, 0].tolist()
    assert touched == sorted(set(packed.predictor.tolist()))


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
    assert real.all() or layout != "one tree"


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
        packed = pack_rows(pairs)
        hidden = hidden_states(lm.body, packed)
        sums = completion_logps(hidden, lm.head, packed, chunk=size)
        (sums * torch.arange(1.0, 7.0)).sum().backward()
        found.append((sums.detach(), {name: weight.grad for name, weight in lm.model.named_parameters()}))
    assert close(found[0][0], found[1][0])
    for name, gradient in found[1][1].items():
        assert near(found[0][1][name], gradient), name


def test_logits_exist_for_a_chunk_at_a_time(tiny, monkeypatch):
    sizes = []
    plain = logps._token_logps
    monkeypatch.setattr(logps, "_token_logps", lambda h, t, head: sizes.append(len(t)) or plain(h, t, head))
    lm, packed = tiny(), pack_rows(CASES["unequal prompts"])
    with torch.no_grad():
        completion_logps(hidden_states(lm.body, packed), lm.head, packed, chunk=10)
    assert sizes == [10, 10, 5]


def test_a_head_may_take_all_positions_in_one_call(tiny):
    """As it does in training: what splits a model over processes hooks into one call a module."""
    lm, packed, asked = tiny(), pack_rows(CASES["unequal prompts"]), []

    def whole(scored, target, chunk):
        asked.append((scored.shape, target.tolist(), chunk))
        return token_logps(scored, target, lm.head, chunk)

    with torch.no_grad():
        hidden = hidden_states(lm.body, packed)
        found = completion_logps(hidden, whole, packed, chunk=7, whole=True)
        assert close(found, completion_logps(hidden, lm.head, packed))
    assert asked == [((25, hidden.shape[-1]), packed.target.tolist(), 7)]


def test_the_cheaper_layout_is_taken():
    long_prompts = tokens_of(1, (200, 10, 10), (180, 10, 10))
    assert pack(long_prompts, hidden_size=768).mask is not None
    long_completions = tokens_of(1, *[(3, 200, 200)] * 4)
    assert pack(long_completions, hidden_size=64).mask is None


def test_long_pairs_get_rows_of_their_own_and_short_ones_share():
    """Attention grows with the square of a row, padding with the number of rows."""
    assert pack(tokens_of(1, *[(400, 99, 99)] * 4), hidden_size=576).input_ids.shape == (4, 598)
    assert pack(tokens_of(1, (40, 9, 9), *[(3, 2, 2)] * 3), hidden_size=576).input_ids.shape == (1, 79)
    unequal = tokens_of(1, (600, 9, 9), (290, 9, 9), (290, 9, 9))
    assert pack(unequal, hidden_size=576).input_ids.shape == (2, 618)
    assert into_rows([618, 308, 308], 2) == [[0], [1, 2]]
    assert into_rows([5, 10, 7, 6], 2) == [[1, 0], [2, 3]]
    shared = tokens_of(1, (58, 1, 1), *[(18, 1, 1)] * 3, shared=30)
    assert pack(shared, hidden_size=16).input_ids.shape == (2, 90), "rows are evened out by what is a pair's own"


def test_cost_of_a_layout_by_hand():
    """Tokens, and of each row's square of attention what it is to a token's linear layers: 4 x N to 24 x width."""
    assert _cost(2, 60, 1.2, 10) == 2 * 60 * (1 + 1.2)
    assert _cost(1, 30, 1.0, 5) == 60


def test_what_prompts_share_counts_once_a_row():
    """Eight rows of 212 cost more than one of 208, which only a layout that stores the prefix once has."""
    pairs = tokens_of(2, *[(1, 1, 1)] * 4, shared=200)
    assert pack(pairs, hidden_size=576).input_ids.shape == (1, 212)
    assert pack(tokens_of(2, (2, 30, 30)), hidden_size=64).mask is None, "two rows of 32 against one of 62"
    assert pack(tokens_of(2, (20, 30, 30)), hidden_size=64).mask is not None


def test_positions_and_padding_by_hand():
    """Two pairs of (prompt, chosen, rejected) lengths (2, 2, 1) and (1, 1, 1)."""
    pairs = tokens_of(3, (2, 2, 1), (1, 1, 1))
    rows = pack_rows(pairs)
    assert rows.position_ids.tolist() == [[0, 1, 2, 3]] * 4
    assert rows.origin.tolist() == [[0, 1, 2, 3], [0, 1, 4, -1], [5, 6, -1, -1], [5, 7, -1, -1]]
    trees = pack_trees(pairs, [[0], [1]])
    assert trees.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 1, 0, 0]]
    assert trees.origin.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]]
    see = [[True, False, False, False, False], [True, True, False, False, False], [True, False, True, False, False]]
    assert trees.mask[1, 0].tolist() == [*see, [False] * 3 + [True, False], [False] * 4 + [True]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_moves_to_a_device_as_a_whole(layout):
    packed = LAYOUTS[layout](CASES["unequal prompts"])
    moved = to_device(packed, torch.device("meta"))
    for name, value in vars(packed).items():
        there = getattr(moved, name)
        assert (there is None) if value is None else (there.device.type == "meta"), name


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
