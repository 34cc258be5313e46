"""What reward models read: conversations by their template, segments, BOS and EOS."""

import pytest
import torch
from factory_rewards import save
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer

from stagealign.scoring import reward_model as rewards
from stagealign.scoring.contest import Contest

TURNS = tuple(
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on"))
)
TEXT = "system: Be brief.\n\nuser: Hi\n\nassistant: Yes?\n\nuser: Go on"
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go on\n\nAssistant:"
REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


def read_by(oracle, contest):
    """The texts of a contest as the model reads them."""
    seen = []
    call = oracle._logits
    oracle._logits = lambda rows: seen.extend(oracle.tokenizer.decode(row.ids) for row in rows) or call(rows)
    (verdict,) = oracle.judge([contest])
    assert verdict.failed is None
    return set(seen)


@pytest.mark.parametrize(
    ("prompt", "messages", "start"),
    [
        (TEXT, TURNS, "<system>Be brief.\n<user>Hi\n<assistant>Yes?\n<user>Go on\n<assistant>"),
        (HH, None, "<user>Hi\n<assistant>Yes?\n<user>Go on\n<assistant>"),
        ("Hi", None, "<user>Hi\n<assistant>"),
        ("user: Hi\n\nassistant: Sure, ", (TURNS[1], {"role": "assistant", "content": "Sure, "}),
         "<user>Hi\n<assistant>Sure, "),
    ],
)  # fmt: skip
def test_a_chat_model_reads_the_conversation(tmp_path, prompt, messages, start):
    oracle = rewards.load(save(tmp_path, chat=True))
    assert read_by(oracle, Contest(prompt, ("a",), ("b",), messages)) == {f"{start}a\n", f"{start}b\n"}


def test_a_conversation_that_the_template_refuses_is_a_failure_and_the_others_count(tmp_path):
    folder = save(tmp_path, chat=True)
    (tmp_path / "chat_template.jinja").write_text(REFUSES)
    oracle = rewards.load(folder)
    same = Contest(TEXT, ("a",), ("b",))  # the same text as one turn: another conversation
    failed, fine = oracle.judge([Contest(TEXT, ("a",), ("b",), TURNS), same])
    assert "the chat template refuses the conversation (no system role)" in failed.failed
    assert fine.failed is None
    (alone,) = oracle.judge([Contest(TEXT, ("a",), ("b",), TURNS)])
    assert alone == failed


def bos_and_eos(oracle, pieces):
    inner = oracle.tokenizer._tokenizer
    inner.add_special_tokens(["<s>"])
    marks = [(one, inner.token_to_id(one)) for one in ("<s>", "<|endoftext|>")]
    inner.post_processor = TemplateProcessing(pieces, f"{pieces} {pieces.replace('$A', '$B')}", marks)


@pytest.mark.parametrize(("pieces", "start"), [("<s> $A", "<s>"), ("<s> $A <|endoftext|>", "<s>"), ("$A", "")])
def test_a_decoder_without_a_template_reads_one_bos_and_one_eos(tmp_path, pieces, start):
    oracle = rewards.load(save(tmp_path))
    bos_and_eos(oracle, pieces)
    texts = read_by(oracle, Contest("Hi.", ("a", " a", "b<|endoftext|>"), ("",)))
    assert texts == {f"{start}Hi. a<|endoftext|>", f"{start}Hi. b<|endoftext|>", f"{start}Hi.<|endoftext|>"}
    assert read_by(oracle, Contest(HH, ("a",), ("a",))) == {f"{start}{HH} a<|endoftext|>"}
    marked = f"{start}{TEXT}\n\nassistant: a<|endoftext|>"
    assert read_by(oracle, Contest(TEXT, ("a",), ("a",), TURNS)) == {marked}


def test_a_cut_text_of_a_decoder_keeps_its_eos(tmp_path):
    oracle = rewards.load(save(tmp_path), max_length=10)
    assert read_by(oracle, Contest("Hi.", ("a" * 20,), ("a" * 30,))) == {"Hi. aaaaa<|endoftext|>"}
    (lost,) = oracle.judge([Contest("Hi." * 4, ("a",), ("b",))])
    assert lost.failed == "the prompt alone fills the reward model's 10 tokens"


def test_segments_reach_a_model_that_embeds_them_in_any_batch(tmp_path):
    """Without segments BERT reads prompt and completion as one text, and its score is another one."""
    oracle = rewards.load(save(tmp_path, "bert"))
    oracle.tokenizer.model_input_names = BertTokenizer.model_input_names
    inner = oracle.tokenizer._tokenizer
    marks = [(one, inner.token_to_id(one)) for one in ("[CLS]", "[SEP]")]
    inner.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", marks)
    contest = Contest("Say it.", ("Yes", "No, never"), ("A longer answer", ""))
    (found,) = oracle.judge([contest])

    def alone(completion, segments):
        encoded = oracle.tokenizer("Say it.", completion, return_tensors="pt")
        encoded = encoded if segments else {"input_ids": encoded["input_ids"]}
        with torch.inference_mode():
            return float(oracle.model(**encoded).logits[0, 0])

    texts = (*contest.on, *contest.off)
    assert (*found.on, *found.off) == pytest.approx([alone(text, True) for text in texts], abs=1e-5)
    assert abs(found.on[0] - alone("Yes", False)) > 1e-3
