"""Reward models with random weights: what is scored, in any batch, and what is refused."""

import json

import pytest
import torch
from factory_models import CHAT
from factory_rewards import save

from stagealign.base.errors import StagealignError
from stagealign.scoring import reward_model as rewards
from stagealign.scoring.contest import Contest

CONTESTS = [
    Contest("Say it.", ("Yes, gladly!", "No."), ("A much longer answer, with a lot to say about it.", "Yes.")),
    Contest("Review the film Jaws (1975).", ("", "Sharks"), ("Good. " * 5, "Good. " * 5)),
    Contest("Hi", ("a", "b"), ("c", "d")),
]


def alone(oracle, text, special=True, pair=None):
    """Score of one text, without a batch, by transformers alone."""
    ids = torch.tensor([oracle.tokenizer(text, pair, add_special_tokens=special).input_ids])
    with torch.inference_mode():
        return float(oracle.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])


def scores(oracle, contests=CONTESTS):
    return [(*one.on, *one.off) for one in oracle.judge(contests)]


def expected(oracle, text):
    return [[text(oracle, one.prompt, c) for c in (*one.on, *one.off)] for one in CONTESTS]


def test_chat_template_is_applied_where_the_tokenizer_has_one(tmp_path):
    oracle = rewards.load(save(tmp_path, chat=True))
    assert oracle.text == "chat"
    wanted = expected(oracle, lambda o, p, c: alone(o, f"<user>{p}\n<assistant>{c}\n", special=False))
    for found, row in zip(scores(oracle), wanted, strict=True):
        assert found == pytest.approx(row, abs=1e-5)
    assert len({round(score, 3) for row in wanted for score in row}) > 8


def test_without_a_template_prompt_and_completion_are_joined_by_the_tokenizer(tmp_path):
    oracle = rewards.load(save(tmp_path, "bert"))
    assert oracle.text == "pair"
    for found, row in zip(scores(oracle), expected(oracle, lambda o, p, c: alone(o, p, pair=c)), strict=True):
        assert found == pytest.approx(row, abs=1e-5)


def test_a_completion_alone_as_the_labs_own_head_wants_it(tmp_path):
    oracle = rewards.load(save(tmp_path, "bert"), text="completion", max_length=64)
    for found, row in zip(scores(oracle), expected(oracle, lambda o, p, c: alone(o, c)), strict=True):
        assert found == pytest.approx(row, abs=1e-5)
    assert oracle.identity["max_length"] == 64


@pytest.mark.parametrize("shape", ["llama", "bert"])
def test_a_verdict_does_not_depend_on_its_batch(tmp_path, shape, monkeypatch):
    folder = save(tmp_path, shape, chat=shape == "llama")
    wanted = scores(rewards.load(folder, batch_tokens=1))
    monkeypatch.setattr(rewards, "WINDOW", 2)
    for tokens in (100, 10**6):
        oracle = rewards.load(folder, batch_tokens=tokens)
        for found, row in zip(scores(oracle, CONTESTS[::-1])[::-1], wanted, strict=True):
            assert found == pytest.approx(row, abs=1e-5)


def test_rows_that_end_in_eos_are_read_at_it_though_it_pads(tmp_path):
    """With EOS as padding, transformers would read the score before it; `alone` has no padding at all."""
    oracle = rewards.load(save(tmp_path), text="completion")
    assert oracle.tokenizer.pad_token == oracle.tokenizer.eos_token
    texts = ("Good.<|endoftext|>", "Good.", "A longer one<|endoftext|>", "Bad")
    (found,) = oracle.judge([Contest("p", texts[:2], texts[2:])])
    ended = [text.removesuffix("<|endoftext|>") + "<|endoftext|>" for text in texts]
    assert (*found.on, *found.off) == pytest.approx([alone(oracle, text) for text in ended], abs=1e-5)
    assert oracle.model.config.pad_token_id is None


def test_equal_texts_tie_and_cut_texts_are_counted(tmp_path):
    oracle = rewards.load(save(tmp_path, chat=True), max_length=40)
    same, cut = "Good", "Good. " * 20
    (found,) = oracle.judge([Contest("Say it.", (same, cut), (same, cut))])
    assert found.on == found.off
    assert (found.truncated, found.compared, found.changed, found.failed) == (2, 0, 0, None)
    start = f"<user>Say it.\n<assistant>{cut}"[:40]
    assert found.on[1] == pytest.approx(alone(oracle, start, special=False), abs=1e-5)


@pytest.mark.parametrize("shape", ["llama", "bert"])
def test_a_prompt_that_leaves_nothing_of_its_completions_is_a_failure(tmp_path, shape):
    oracle = rewards.load(save(tmp_path, shape, chat=shape == "llama"))
    long = Contest("Say it. " * 30, ("a", "b"), ("c", "d"))
    failed, fine = oracle.judge([long, CONTESTS[0]])
    assert failed.failed == "the prompt alone fills the reward model's 128 tokens"
    assert (failed.on, failed.off) == ((), ())
    assert fine.failed is None
    (lone,) = rewards.load(str(tmp_path), text="completion").judge([long])
    assert lone.failed is None


@pytest.mark.parametrize("text", ["pair", "completion"])
def test_a_cut_text_keeps_its_last_separator(tmp_path, text):
    oracle = rewards.load(save(tmp_path, "bert"), text=text, max_length=30)
    (found,) = oracle.judge([Contest("Say it.", ("Good. " * 20,), ("Good. " * 30,))])
    assert found.truncated == 2
    assert found.on == found.off
    kept = ("Good. " * 20)[: 30 - 2 if text == "completion" else 30 - 3 - len("Say it.")]
    expected = alone(oracle, "Say it.", pair=kept) if text == "pair" else alone(oracle, kept)
    assert found.on[0] == pytest.approx(expected, abs=1e-5)


def test_numbers_that_are_not_finite_are_a_failure(tmp_path):
    oracle = rewards.load(save(tmp_path), text="completion")
    with torch.no_grad():
        oracle.model.score.weight[:] = float("inf")
    assert all("not finite" in one.failed for one in oracle.judge(CONTESTS))


def test_identity_holds_what_may_change_a_score_and_no_place(tmp_path):
    one, other = rewards.load(save(tmp_path / "a", chat=True)), rewards.load(save(tmp_path / "b", chat=True))
    assert one.identity == other.identity
    assert str(tmp_path) not in json.dumps(one.identity)
    (tmp_path / "b" / "record.json").write_text("{}")
    assert rewards.load(str(tmp_path / "b")).identity == one.identity
    (tmp_path / "b" / "chat_template.jinja").write_text(CHAT.replace("<assistant>", "<bot>"))
    assert rewards.load(str(tmp_path / "b")).identity != one.identity
    assert rewards.load(str(tmp_path / "a"), text="pair").identity != one.identity


def test_checkpoints_that_are_no_reward_model_are_refused(tmp_path, tiny):
    with pytest.raises(StagealignError, match="has 3 rows; a reward model has one logit"):
        rewards.load(save(tmp_path / "classes", labels=3))
    lm = tiny()
    lm.model.save_pretrained(tmp_path / "causal")
    lm.tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(StagealignError, match=r"has LlamaForCausalLM, a language model.*a reward model has one logit"):
        rewards.load(str(tmp_path / "causal"))
    path = tmp_path / "causal" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "reward"}, "architectures": None}))
    with pytest.raises(
        StagealignError, match=r"1 weights of LlamaForSequenceClassification are missing.*score\.weight"
    ):
        rewards.load(str(tmp_path / "causal"))
    with pytest.raises(StagealignError, match="asks to run code of its own"):
        rewards.load(save(tmp_path / "remote", auto_map={"AutoModelForSequenceClassification": "evil.Model"}))
    folder = save(tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").rename(tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(StagealignError, match="safetensors"):
        rewards.load(folder)
    with pytest.raises(StagealignError, match="checkpoint"):
        rewards.load(save(tmp_path / "no-config", weights=False))


def test_a_head_on_the_hub_is_read_by_its_header(tmp_path, monkeypatch):
    """Source: OpenRLHF issue 1039, a reward model whose config.json has no num_labels."""
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

    folder = save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "a", "1": "b"}}))
    expected = rewards.check(folder)[0].num_labels
    asked = []

    def metadata(rows):
        head = TensorInfo("F32", (rows, 32), (0, rows * 128))
        files = {"model.safetensors": SafetensorsFileMetadata({}, {"score.weight": head})}
        return lambda name, revision=None: asked.append(name) or SafetensorsRepoMetadata({}, False, {}, files)

    monkeypatch.setattr(rewards, "read_headers", lambda *_: {})
    for rows, ends in ((1, False), (2, True)):
        monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", metadata(rows))
        if ends:
            with pytest.raises(StagealignError, match=r"score.weight has 2 rows"):
                rewards.check(folder)
        else:
            assert rewards.check(folder)[0].num_labels == expected == 1
    assert asked == [folder, folder]


def test_options_that_cannot_be_used_are_refused(tmp_path):
    folder = save(tmp_path)
    with pytest.raises(StagealignError, match="has no chat template"):
        rewards.load(folder, text="chat")
    with pytest.raises(StagealignError, match="text 'both': unknown"):
        rewards.load(folder, text="both")
    with pytest.raises(StagealignError, match="max_length 500: this reward model reads 1 to 128"):
        rewards.load(folder, max_length=500)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only tools') }}")
    with pytest.raises(StagealignError, match=r"chat template fails \(only tools\); correct"):
        rewards.load(folder)
