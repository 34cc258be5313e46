"""Sampler: equal to `generate` where that is defined, and the same text for a seed in any batch."""

from dataclasses import replace

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from stagealign.base.errors import BadData
from stagealign.data.records import Prompt, prompt_hash
from stagealign.grid.spec import Decoding
from stagealign.policy import fast as fast_path
from stagealign.policy import paths
from stagealign.policy.draw import choose, draws, penalised
from stagealign.policy.forward import completion_logps
from stagealign.policy.logps import PairTokens, pack
from stagealign.policy.paths import SamplingPath, path_of
from stagealign.policy.sample import generate, sample

SHAPES = ("llama", "neox")
DECODING = Decoding(temperature=0.7, top_p=0.9, top_k=50, max_new_tokens=12)
GREEDY = replace(DECODING, temperature=0.0)
ENDS = list(range(0, 264, 12))
"""Token ids that end a completion where early ends are wanted: 22 of 264."""
FILMS = [Prompt(f"Review the film {title}.", "train") for title in ("Jaws", "Heat", "The Piano", "Up", "Brazil (1985)")]
OTHERS = [Prompt("Say it", "train"), Prompt("A much longer request than all of the others here.", "train"), *FILMS]


def by_key(candidates):
    return {(c.prompt, c.index): (c.completion, c.token_ids, c.truncated, c.tokens) for c in candidates}


def ending_early(lm):
    lm.model.generation_config.eos_token_id = ENDS
    return lm


@pytest.mark.parametrize(
    "prompts", [FILMS, OTHERS, OTHERS[:1]], ids=["shared prefix", "no shared prefix", "one prompt"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_generate_token_by_token(shape, prompts, tiny):
    lm = ending_early(tiny(shape))
    ids = [lm.prompt_ids(prompt.text) for prompt in prompts]
    ours = generate(lm, ids, [[torch.zeros(12)] for _ in ids], GREEDY)
    for prompt, (found,) in zip(ids, ours, strict=True):
        given = torch.tensor([prompt])
        theirs = lm.model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=12)
        expected = theirs[0, len(prompt) :].tolist()
        assert found.ended == (expected[-1] in ENDS)
        assert list(found.ids) == (expected[:-1] if found.ended else expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_text_in_any_batch(shape, tiny):
    """Up to rounding: a batch changes log-probs by some 1e-6, so that a draw as near to the edge of a token's share may
    fall on the other side. This seed has no such draw (seed 7 has one in 252, at 1e-7, on `neox`).
    """
    lm = ending_early(tiny(shape))
    expected = sample(lm, OTHERS, DECODING, 3, seed=8)
    assert len({c.truncated for c in expected}) == 2
    for prompts, rows in (
        (OTHERS, 3),
        (OTHERS, 7),
        (OTHERS[::-1], 256),
        (FILMS, 256),
        (OTHERS[:2], 1),
        (OTHERS[4:5], 3),
    ):
        found = sample(lm, prompts, DECODING, 3, seed=8, rows=rows)
        assert [c.prompt for c in found] == [p.text for p in prompts for _ in range(3)]
        every = by_key(expected)
        assert by_key(found) == {key: every[key] for key in by_key(found)}
        logps = {(c.prompt, c.index): c.logp for c in expected}
        assert all(c.logp == pytest.approx(logps[c.prompt, c.index], abs=2e-3) for c in found)


def test_fewer_candidates_are_the_first_of_more(tiny):
    lm = tiny()
    one, three = by_key(sample(lm, FILMS, DECODING, 1, seed=7)), by_key(sample(lm, FILMS, DECODING, 3, seed=7))
    assert one == {key: text for key, text in three.items() if key[1] == 0}


def test_another_seed_gives_other_text_and_candidates_differ(tiny):
    lm = tiny()
    first, second = (by_key(sample(lm, FILMS, DECODING, 3, seed=seed)) for seed in (1, 2))
    assert all(first[key] != second[key] for key in first)
    for prompt in FILMS:
        assert len({first[prompt.text, j][1] for j in range(3)}) == 3


def test_truncated_candidates_are_flagged(tiny):
    lm = ending_early(tiny())
    found = sample(lm, OTHERS, DECODING, 4, seed=3)
    ended = [c for c in found if not c.truncated]
    assert 0 < len(ended) < len(found)
    for c in found:
        assert len(c.token_ids) == 12 if c.truncated else len(c.token_ids) < 12
        assert c.tokens == len(c.token_ids) + (not c.truncated)
        assert not set(c.token_ids) & set(ENDS)
        assert c.completion == lm.tokenizer.decode(list(c.token_ids), skip_special_tokens=True).strip()


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logp_equals_a_forward_pass(shape, tiny):
    """At temperature 1 over the whole vocabulary, the end token included where there is one."""
    lm = tiny(shape)
    lm.model.get_output_embeddings().weight[0] *= 3  # so that the tokenizer's end token comes up
    found = sample(lm, OTHERS, DECODING, 3, seed=5)
    assert {c.truncated for c in found} == {True, False}
    pairs = [PairTokens(tuple(lm.prompt_ids(c.prompt)), c.token_ids + (() if c.truncated else (0,)), ()) for c in found]
    expected = completion_logps(lm.model, pack(pairs)).view(-1, 2)[:, 0]
    assert [c.logp for c in found] == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_repeated_prompt_is_sampled_once(tiny):
    lm = tiny()
    assert sample(lm, [*FILMS, FILMS[2], FILMS[0]], DECODING, 2, seed=1) == sample(lm, FILMS, DECODING, 2, seed=1)


def test_chat_template_is_what_the_model_sees(tiny):
    """A templated prompt gives what its rendered text gives, under the same draws."""
    chat, plain = tiny(chat=True), tiny()
    rendered = "<user>Review the film Up.\n<assistant>"
    uniforms = [[draws(1, "any", 0, 12)]]
    assert chat.prompt_ids("Review the film Up.") == plain.prompt_ids(rendered)
    one = generate(chat, [chat.prompt_ids("Review the film Up.")], uniforms, DECODING)
    assert one == generate(plain, [plain.prompt_ids(rendered)], uniforms, DECODING)


def test_finished_rows_leave_the_batch(tiny, monkeypatch):
    lm, sizes = ending_early(tiny()), []
    path_of(lm)  # its guard steps too
    step = fast_path._step
    monkeypatch.setattr(fast_path, "_step", lambda *given: sizes.append(len(given[3])) or step(*given))
    found = sample(lm, OTHERS, DECODING, 4, seed=3)
    alive = [sum(len(c.token_ids) > done for c in found) for done in range(11)]
    assert sizes == [count for count in alive if count]
    assert sizes[-1] < len(found)


def test_sampling_leaves_the_model_as_it_was(tiny):
    lm = tiny()
    ids, before = torch.tensor([[5, 6, 7]]), lm.model.config._attn_implementation
    logits = lm.model(ids).logits
    sample(lm, FILMS, DECODING, 1, seed=1)
    assert lm.model.config._attn_implementation == before
    assert torch.equal(lm.model(ids).logits, logits)


def test_draws_belong_to_a_candidate():
    """Uniform on [0, 1), the same when asked again, others for another seed, prompt or index."""
    one = draws(1, prompt_hash("a"), 0, 1000)
    assert torch.equal(one, draws(1, prompt_hash("a"), 0, 1000))
    assert torch.equal(one[:10], draws(1, prompt_hash("a"), 0, 10))
    for other in (
        draws(2, prompt_hash("a"), 0, 1000),
        draws(1, prompt_hash("b"), 0, 1000),
        draws(1, prompt_hash("a"), 1, 1000),
    ):
        assert not (one == other).any()
    assert 0 <= one.min() < 0.01 < 0.99 < one.max() < 1


def warped(logits, decoding):
    """Probabilities after transformers' temperature, top-k and top-p, in its order."""
    scores = TemperatureLogitsWarper(decoding.temperature)(None, logits)
    scores = TopKLogitsWarper(decoding.top_k)(None, scores)
    return TopPLogitsWarper(decoding.top_p)(None, scores).softmax(-1)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(0.7, top_p=0.9, top_k=50),
        Decoding(1.0, top_p=0.5, top_k=50),
        Decoding(1.3, top_p=1.0, top_k=5),
        Decoding(0.7, top_p=1.0, top_k=1000),
        Decoding(1.0, top_p=0.01, top_k=50),
    ],
    ids=lambda d: f"t{d.temperature}-p{d.top_p}-k{d.top_k}",
)
def test_choose_has_transformers_nucleus_and_probabilities(decoding):
    """An even grid of draws gives each token its probability to one grid step, and no other token ever."""
    logits = 2 * torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    expected, points = warped(logits, decoding), 20_000
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    for row, probabilities in zip(logits, expected, strict=True):
        token, logp = choose(row.expand(points, -1), uniform, decoding)
        share = torch.bincount(token, minlength=100) / points
        assert not share[probabilities == 0].any()
        assert (share - probabilities).abs().max() < 2 / points
        assert torch.allclose(logp, row.log_softmax(-1)[token], atol=1e-5)


def test_choose_at_the_ends_of_the_unit_interval():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    decoding = Decoding(1.0, top_p=1.0, top_k=4)
    assert choose(logits, torch.tensor([0.0], dtype=torch.float64), decoding)[0].item() == 1
    assert choose(logits, torch.tensor([1.0], dtype=torch.float64), decoding)[0].item() == 0


def test_frequencies_match_probabilities():
    """Chi-square of 20,000 candidates' first draws on a vocabulary of 8 tokens, at the 99.9% quantile of 7 degrees."""
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(4))
    decoding = Decoding(1.0, top_p=1.0, top_k=8)
    uniform = torch.cat([draws(11, prompt_hash(str(i)), j, 1) for i in range(2_000) for j in range(10)])
    counts = torch.bincount(choose(logits.expand(20_000, -1), uniform, decoding)[0], minlength=8)
    expected = 20_000 * logits.softmax(-1)[0]
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
def test_a_completion_has_what_the_context_leaves(fast, tiny, monkeypatch):
    """505 tokens of 512 leave 7 of 12; 512 leave none, and the prompt is named."""
    lm = tiny()
    monkeypatch.setitem(paths._PATHS, lm.model, SamplingPath(fast))
    chance = [[torch.zeros(12)]]
    assert [len(row.ids) for (row,) in generate(lm, [[1] * 505, [1] * 9], chance * 2, GREEDY)] == [7, 12]
    with pytest.raises(BadData, match=r"prompt 'film': its 512 tokens fill the policy's context of 512"):
        generate(lm, [[1] * 512], chance, DECODING, names=["film"])


def test_penalties_are_taken_off_what_a_completion_holds(tiny):
    """By hand for one row; and a large enough one forbids a repeated token, whatever the batch."""
    decoding = Decoding(temperature=0, presence_penalty=0.5, frequency_penalty=0.25, max_new_tokens=8)
    logits, written = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    assert penalised(logits, written, decoding).tolist() == [[1.0, 1.25, 1.5]]
    token, logp = choose(logits, torch.zeros(1), decoding, torch.tensor([[0.0, 0.0, 8.0]]))
    assert token.item() == 1
    assert logp.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item()), "of the policy, not of the penalties"
    lm = tiny()
    prompts = [Prompt(f"Prompt number {i}.", "test") for i in range(5)]
    strict = replace(decoding, frequency_penalty=100.0)
    alone = [sample(lm, [one], strict, 1, 0)[0] for one in prompts]
    assert [one.token_ids for one in sample(lm, prompts, strict, 1, 0)] == [one.token_ids for one in alone]
    assert all(len(set(one.token_ids)) == len(one.token_ids) for one in alone)
    free = sample(lm, prompts, replace(strict, frequency_penalty=0.0, presence_penalty=0.0), 1, 0)
    assert any(len(set(one.token_ids)) < len(one.token_ids) for one in free), "without it they do repeat"
