"""PairRM with random weights: saved and loaded, in any batch, in both orders, cut by row; the real one where it is."""

import copy
import json
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from factory_pairrm import build
from transformers import DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from stagealign.base.errors import StagealignError
from stagealign.oracle import label, pairrm
from stagealign.oracle.disentangled import ReadingAttention
from stagealign.oracle.labels import to_votes
from stagealign.oracle.open import INSTRUCTION, row_of
from stagealign.oracle.pairrm import verdict
from stagealign.scoring.contest import Contest
from stagealign.stats.votes import cross_votes, pair_votes

WORDS = ("good", "bad", "film", "the", "plot", "was", "odd", "and", "long", "fun")


def words(generator, count):
    return " ".join(generator.choice(WORDS) for _ in range(count))


def contests(count=5, seed=1, longest=12):
    generator = random.Random(seed)
    return [
        Contest(
            words(generator, generator.randint(1, longest)),
            tuple(words(generator, generator.randint(1, longest)) for _ in range(2)),
            tuple(words(generator, generator.randint(1, longest)) for _ in range(2)),
        )
        for _ in range(count)
    ]


def one_by_one(oracle, prompt, first, second):
    """One comparison as the checkpoint's README does it: the tokenizer joins and cuts, one row, no padding."""
    encode = oracle.tokenizer.encode
    front = encode("<|source|>" + prompt, max_length=pairrm.PROMPT_TOKENS, truncation=True)
    room = (pairrm.ALL_TOKENS - len(front)) // 2
    rest = [
        encode(mark + text, max_length=room, truncation=True)
        for mark, text in (("<|candidate1|>", first), ("<|candidate2|>", second))
    ]
    ids = torch.tensor([front + rest[0] + rest[1]])
    with torch.inference_mode():
        return float(oracle.model(ids, torch.ones_like(ids)))


def scores(oracle, given):
    return [(*one.on, *one.off) for one in oracle.judge(given)]


def test_parameter_names_are_those_of_the_published_checkpoint():
    names = set(build().model.state_dict())
    assert {name for name in names if not name.startswith("pretrained_model.")} == {
        f"head_layer.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")
    }
    inner = {name.removeprefix("pretrained_model.") for name in names if name.startswith("pretrained_model.")}
    assert inner == set(DebertaV2Model(build().model.config).state_dict())


def test_batched_equals_one_by_one():
    given = contests()
    oracle = build(batch_tokens=2000)
    for contest, found in zip(given, oracle.judge(given), strict=True):
        texts = (*contest.on, *contest.off)
        for i, score in enumerate((*found.on, *found.off)):
            expected = [
                (
                    one_by_one(oracle, contest.prompt, texts[i], other)
                    - one_by_one(oracle, contest.prompt, other, texts[i])
                )
                / 2
                for j, other in enumerate(texts)
                if j != i
            ]
            assert score == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_a_verdict_does_not_depend_on_its_batch():
    given = contests(7)
    expected = scores(build(batch_tokens=1), given)
    assert len({round(score, 3) for row in expected for score in row}) > 25  # the random head tells texts apart
    for batch_tokens, order in ((500, given), (3000, given[::-1]), (10**6, given[3:])):
        found = dict(zip((one.prompt for one in order), scores(build(batch_tokens=batch_tokens), order), strict=True))
        for contest, row in zip(given, expected, strict=True):
            if contest.prompt in found:
                assert found[contest.prompt] == pytest.approx(row, abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 200])
def test_attention_for_reading_is_transformers_own(length):
    """Around where positions fall into buckets, beyond the last one, and with padding."""
    model = build().model.pretrained_model
    own = copy.deepcopy(model)
    for module in own.modules():
        if type(module) is ReadingAttention:
            module.__class__ = DisentangledSelfAttention
    ids = torch.randint(0, 20, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    with torch.inference_mode():
        for given in (torch.ones_like(ids), mask):
            found, expected = (one(input_ids=ids, attention_mask=given).last_hidden_state for one in (model, own))
            keep = given.bool()
            torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)


def test_in_training_attention_is_transformers_own():
    model = build().model.pretrained_model
    layer = next(one for one in model.modules() if type(one) is ReadingAttention)
    with_maps = model(input_ids=torch.tensor([[1, 2, 3]]), output_attentions=True).attentions
    assert with_maps[0].shape == (1, 2, 3, 3)
    model.train()
    torch.manual_seed(0)
    first = model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
    layer.__class__ = DisentangledSelfAttention
    torch.manual_seed(0)
    assert torch.equal(first, model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state)


def test_windows_keep_the_order(monkeypatch):
    given = contests(7)
    expected = scores(build(), given)
    monkeypatch.setattr(pairrm, "WINDOW", 3)
    for found, row in zip(scores(build(), given), expected, strict=True):
        assert found == pytest.approx(row, abs=1e-5)
    assert list(build().judge([])) == []


def test_averaged_over_both_orders_a_swap_changes_only_the_sign():
    oracle = build()
    for contest in contests(6):
        a, b = contest.on[0], contest.off[0]
        there, back = list(oracle.judge([Contest(contest.prompt, (a,), (b,)), Contest(contest.prompt, (b,), (a,))]))
        assert there.on[0] == -there.off[0] != 0
        assert there.on[0] == pytest.approx(back.off[0], abs=1e-6)
        assert there.on[0] == pytest.approx(-back.on[0], abs=1e-6)
        single = oracle.logits([(contest.prompt, a, b), (contest.prompt, b, a)])
        assert abs(single[0] + single[1]) > 1e-4  # one order alone is not symmetric
        assert there.on[0] == pytest.approx((single[0] - single[1]) / 2, abs=1e-5)


def test_verdict_by_hand():
    """Distinct texts a, b, c; on = (a, b), off = (c, a). ab: (3 - 1)/2 = 1; ac: (-2 - 2)/2 = -2; bc: (1 + 1)/2 = 1.

    a: (1 - 2 + 0)/3; b: (-1 + 1 - 1)/3; c: (2 - 1 + 2)/3. Only ab changes its winner with the order: a first wins at 3,
    b first wins at 1.
    """
    logits = {(0, 1): (3.0, 1.0), (0, 2): (-2.0, 2.0), (1, 2): (1.0, -1.0)}
    found = verdict(Contest("p", ("a", "b"), ("c", "a")), ["a", "b", "c"], [True, False, False], logits)
    assert found.on == pytest.approx((-1 / 3, -1 / 3))
    assert found.off == pytest.approx((1.0, -1 / 3))
    assert found.won == (0.0, 0.5, 1.0, 0.0)  # a against c and a, b against c and a
    assert (found.compared, found.changed, found.truncated, found.failed) == (3, 1, 2, None)


def test_pairs_that_go_in_a_circle_vote_for_themselves():
    """A beats c, c beats b, b beats d, d beats a: 2 of 4 votes; the scores would say that both lose to c."""
    logits = {(0, 1): (0.0, 0.0), (0, 2): (1.0, -1.0), (0, 3): (-3.0, 3.0), (1, 2): (-3.0, 3.0), (1, 3): (1.0, -1.0)}
    logits[2, 3] = (0.0, 0.0)
    found = verdict(Contest("p", ("a", "b"), ("c", "d")), ["a", "b", "c", "d"], [False] * 4, logits)
    assert found.won == (1.0, 0.0, 0.0, 1.0)
    assert pair_votes(found.won) == (2.0, 2.0, 0)
    assert cross_votes(found.on, found.off)[0] == 0


def test_equal_texts_tie_exactly():
    (found,) = build().judge([Contest("the film", ("good fun", "bad plot"), ("good fun", "bad plot"))])
    assert found.on == found.off
    assert found.compared == 1
    (same,) = build().judge([Contest("the film", ("x", "x"), ("x", "x"))])
    assert (same.on, same.off, same.compared) == ((0.0, 0.0), (0.0, 0.0), 0)


def test_limits_of_a_row():
    """A letter is a token: 3 are mark and ends, so a prompt keeps 1,221 and leaves 2,048 - 1,224 = 2 * (409 + 3)."""
    oracle = build()
    tokens = oracle._tokens("a" * 1500, ["b" * 500, "c"])
    assert [len(tokens.prompt), *map(len, tokens.candidates)] == [1224, 410, 3]  # a candidate without start and mark
    assert len(tokens.row(0, 0)) == pairrm.ALL_TOKENS
    assert tokens.cut == [True, True]  # the second is whole, but judged on a part of its prompt
    short = oracle._tokens("a", ["b" * 500, "c" * 1100])
    assert short.cut == [False, True]
    assert len(short.row(1, 1)) in (pairrm.ALL_TOKENS - 1, pairrm.ALL_TOKENS)


def test_a_row_is_cut_by_its_own_prompt_and_never_by_batch_mates(monkeypatch):
    for name, limit in (("PROMPT_TOKENS", 60), ("CANDIDATE_TOKENS", 20), ("ALL_TOKENS", 100)):
        monkeypatch.setattr(pairrm, name, limit)
    oracle = build(batch_tokens=1)
    generator = random.Random(5)
    long, longer, rest = words(generator, 30), words(generator, 14), words(generator, 6)
    given = [Contest("the film", (longer, "c"), ("d", rest)), Contest(long, ("a",), ("b",)), *contests(2, longest=2)]
    alone, mixed = next(oracle.judge(given[:1])), list(build(batch_tokens=10**5).judge(given))
    assert (alone.truncated, [one.truncated for one in mixed]) == (1, [1, 2, 0, 0])
    assert (*mixed[0].on, *mixed[0].off) == pytest.approx((*alone.on, *alone.off), abs=1e-5)
    for prompt in ("the film", long):
        for first, second in ((longer, "c"), ("c", longer)):
            cut = oracle.logits([(prompt, first, second)])[0]
            assert cut == pytest.approx(one_by_one(oracle, prompt, first, second), abs=1e-5)


def test_marks_in_a_text_are_not_read_as_ours():
    oracle = build()
    clean, dirty = Contest("the film", ("good",), ("bad",)), "good<|candidate2|>[SEP]<|source|>[CLS]<|candidate|>"
    (found,) = oracle.judge([replace(clean, on=(dirty,))])
    assert found.failed is None
    tokens = oracle._tokens("the<|candidate1|> film", [dirty])
    marks = [one for one in tokens.row(0, 0) if one in oracle._reserved]
    start, end = oracle.tokenizer.cls_token_id, oracle.tokenizer.sep_token_id
    assert marks == [one for mark in oracle._marks for one in (start, mark, end)]


def test_numbers_that_are_not_finite_are_a_failure():
    oracle = build()
    with torch.no_grad():
        oracle.model.head_layer[4].weight[:] = float("nan")
    (found,) = oracle.judge(contests(1))
    assert "not finite" in found.failed
    assert (found.on, found.off) == ((), ())


def saved(folder, **config):
    oracle = build()
    oracle.model.save_pretrained(folder)
    oracle.tokenizer.save_pretrained(folder)
    if config:
        path = folder / "config.json"
        raw = json.loads(path.read_text()) | config
        path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    return oracle


def test_saved_and_loaded_gives_the_same_scores(tmp_path):
    oracle = saved(tmp_path / "a")
    loaded = pairrm.load(str(tmp_path / "a"))
    given = contests(4)
    for found, expected in zip(scores(loaded, given), scores(oracle, given), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert not loaded.model.training
    assert loaded.identity["weights"].startswith("sha256:")
    saved(tmp_path / "b")
    assert pairrm.load(str(tmp_path / "b")).identity == loaded.identity  # the place is no part of it
    with torch.no_grad():
        oracle.model.head_layer[4].bias += 1
    oracle.model.save_pretrained(tmp_path / "b")
    assert pairrm.load(str(tmp_path / "b")).identity != loaded.identity
    half = pairrm.load(str(tmp_path / "a"), dtype="bfloat16")
    assert half.identity != loaded.identity
    assert scores(half, given)[0] == pytest.approx(scores(oracle, given)[0], abs=0.2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks to run code of its own"),
        ({"model_type": "bert"}, "PairRM is 'deberta-v2'"),
        ({"source_prefix_id": None}, "has no source_prefix_id"),
        ({"cand1_prefix_id": 5}, "do not belong together"),
        ({"hidden_size": 64}, "do not have the shapes"),
        ({"num_hidden_layers": 3}, "are missing"),
        ({"model_type": "no-such"}, "no-such"),
    ],
)
def test_checkpoints_that_are_no_pairrm_are_refused(tmp_path, config, reason):
    saved(tmp_path, **config)
    with pytest.raises(StagealignError, match=reason):
        pairrm.load(str(tmp_path))


def test_only_safetensors_are_read(tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(StagealignError, match="checkpoint"):
        pairrm.load(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(StagealignError, match="safetensors"):
        pairrm.load(str(tmp_path))
    assert not (tmp_path / "hacked").exists()
    with pytest.raises(StagealignError, match="nowhere"):
        pairrm.load(str(tmp_path / "nowhere"))
    saved(tmp_path / "fine")
    with pytest.raises(StagealignError, match="dtype 'int8': unknown"):
        pairrm.load(str(tmp_path / "fine"), dtype="int8")


def test_the_published_weights_give_the_published_logits():
    """The two rows of the checkpoint's README, one order each."""
    folder = os.environ.get("STAGEALIGN_PAIRRM")
    if not folder:
        pytest.skip("STAGEALIGN_PAIRRM is not set: a local folder with the files of llm-blender/PairRM-hf")
    rows = [("hello!", "hi!", "f**k off!"), ("I love you!", "I hate you!", "I love you, too!")]
    assert pairrm.load(folder).logits(rows) == pytest.approx([1.9003, -1.2547], abs=2e-4)


def test_the_grid_votes_by_pairs_as_the_meter_does():
    """A pair is a vote (arXiv 2508.10530, Algorithm 1); votes by scores differ where pairs form a cycle."""
    given = contests(60)
    oracle = build()
    signed = label.Labeller(row_of("pairrm"), oracle, 1).verdicts(given)
    rows = [to_votes(contest.prompt, found) for contest, found in zip(given, signed, strict=True)]
    meter = [pair_votes(found.won) for found in oracle.judge(given)]
    assert [(row["on"], row["off"], row["ties"]) for row in rows] == meter
    by_scores = [cross_votes(found.on, found.off) for found in oracle.judge(given)]
    assert sum(one != other for one, other in zip(meter, by_scores, strict=True)) > 5


def test_labels_and_votes_as_artifacts(tmp_path):
    """The builders agree with the oracle asked directly; a tie goes to the second, what cannot teach is counted."""
    from stagealign.data.records import Candidate, Pair, prompt_hash, read_dicts, read_rows, write_rows
    from stagealign.store.artifact import Work

    saved(tmp_path / "weights")
    asked = {"oracle": "pairrm", "sign": 1}
    folders = {name: tmp_path / name for name in ("oracle", "candidates", "pairs", "votes")}
    for folder in folders.values():
        folder.mkdir()
    given = {"weights": str(tmp_path / "weights"), "revision": None}
    facts = pairrm.fetch(Work(given, {}, folders["oracle"], tmp_path))
    assert facts["weights"].startswith("sha256:")
    texts = {"good film": ("the plot", "odd"), "bad film": ("fun", "fun"), "long plot": ("", "odd")}
    candidates = [Candidate(prompt, text, "off", i) for prompt, pair in texts.items() for i, text in enumerate(pair)]
    write_rows(folders["candidates"] / "candidates.jsonl", candidates)
    inputs = {"oracle": folders["oracle"], "candidates": folders["candidates"]}
    facts = label.rank(Work(asked, inputs, folders["pairs"], tmp_path))
    assert (facts["pairs"], facts["drops"]) == (1, {"chosen equals rejected": 1, "empty completion": 1})
    oracle = pairrm.load(str(folders["oracle"]))
    wrapped = (
        f"{INSTRUCTION}USER: good film\nAssistant: <Response 1>",
        "<Response 1>: the plot",
        "<Response 1>: odd",
    )
    there, back = oracle.logits([wrapped, (wrapped[0], wrapped[2], wrapped[1])])
    (pair,) = read_rows(folders["pairs"] / "pairs.jsonl", Pair)
    assert pair.margin == pytest.approx(abs(there - back), abs=1e-5), "the scores are plus and minus half of it"
    assert pair.chosen == ("the plot" if there > back else "odd")
    few = [one for one in candidates if one.prompt == "good film"]
    for name in ("on", "off"):
        (tmp_path / name).mkdir()
        write_rows(
            tmp_path / name / "candidates.jsonl", few if name == "off" else [replace(few[0], completion="bad"), few[1]]
        )
    inputs = {"oracle": folders["oracle"], "completions": tmp_path / "on", "static": tmp_path / "off"}
    assert label.votes(Work(asked, inputs, folders["votes"], tmp_path))["prompts"] == 1
    (row,) = read_dicts(folders["votes"] / "votes.jsonl")
    (found,) = oracle.judge([Contest("good film", ("bad", "odd"), ("the plot", "odd"))])
    assert (row["prompt"], row["on"], row["ties"]) == (prompt_hash("good film"), sum(found.won), 1)
    write_rows(folders["candidates"] / "candidates.jsonl", few)
    with torch.no_grad():
        oracle.model.head_layer[-1].weight.fill_(float("nan"))
    oracle.model.save_pretrained(folders["oracle"])
    again = {"oracle": folders["oracle"], "candidates": folders["candidates"]}
    with pytest.raises(StagealignError, match="not finite"):
        label.rank(Work(asked, again, folders["pairs"], tmp_path))
