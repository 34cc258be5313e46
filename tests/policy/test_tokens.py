"""Tokens of pairs: what was sampled is what is trained, and text is tokenised with its prompt, as TRL does."""

import copy
from dataclasses import replace

import pytest
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from stagealign.base.errors import BadData
from stagealign.data.records import Pair, Prompt, read_rows, write_rows
from stagealign.grid.spec import Decoding
from stagealign.oracle.labels import to_pairs
from stagealign.policy.lm import LanguageModel
from stagealign.policy.sample import sample

WORDS = ("Yes", "No", "Is", "it", "good", "?", "and", "warm", "not", "at", "all", "user", "answer", ":", "\n", "▁")
PAIRS = [
    Pair("Is it good ?", "Yes and warm", "not at all", "off", 1.0),
    Pair("Is it warm ?", " Yes", "No\nnot at all", "off", 1.0),
    Pair("good", "Yes", "No", "off", 1.0),
]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>\n{% endif %}"
)
CHAT = (
    "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'answer' }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>\n{% endif %}"
)


def spaced_words(chat=None, eos="</s>"):
    """A tokenizer that marks spaces as SentencePiece does: text that starts anew gets a mark before its first word."""
    vocabulary = ["<unk>", "</s>", "<|end|>", "<|user|>", "<|answer|>", *WORDS, *(f"▁{word}" for word in WORDS[:-2])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
        pre_tokenizers.Split(Regex(r"\n|:|▁?[^\s▁:]+|▁"), "isolated"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Metaspace()
    marks = ["<|end|>", "<|user|>", "<|answer|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token="</s>", unk_token="<unk>", additional_special_tokens=marks
    )
    fast.chat_template = chat
    return fast


def policy_of(tiny, **given):
    return LanguageModel(tiny().model, spaced_words(**given))


def trls(lm, pairs, chat, folder):
    """Rows as TRL tokenises them; conversations if `chat`."""
    turns = lambda role, text: [{"role": role, "content": text}] if chat else text  # noqa: E731
    rows = [
        {
            "prompt": turns("user", pair.prompt),
            "chosen": turns("assistant", pair.chosen),
            "rejected": turns("assistant", pair.rejected),
        }
        for pair in pairs
    ]
    config = DPOConfig(output_dir=str(folder), bf16=False, use_cpu=True, report_to="none")
    return DPOTrainer(
        lm.model, copy.deepcopy(lm.model), config, train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer
    ).train_dataset


@pytest.mark.parametrize("chat", [None, CHAT], ids=["text", "chat"])
def test_text_is_tokenised_as_trl_does(chat, tiny, tmp_path):
    """But for the line break after the end token of a turn, which TRL trains and no sample can have."""
    lm = policy_of(tiny, chat=chat, eos="<|end|>" if chat else "</s>")
    line = lm.tokenizer.convert_tokens_to_ids("\n")
    pairs = PAIRS if chat else PAIRS[:2]
    for row, pair in zip(trls(lm, pairs, bool(chat), tmp_path), pairs, strict=True):
        ours = lm.pair_tokens(pair, 512)
        assert list(ours.prompt) == row["prompt_ids"]
        for name in ("chosen", "rejected"):
            assert [*getattr(ours, name), *([line] if chat else [])] == row[f"{name}_ids"]


def test_a_word_after_the_prompt_has_no_mark_of_a_new_text(tiny):
    lm = policy_of(tiny, chat=CHAT, eos="<|end|>")
    chosen = lm.pair_tokens(PAIRS[2], 512).chosen
    assert lm.tokenizer.convert_ids_to_tokens(chosen) == ["Yes", "<|end|>"]
    alone = lm.tokenizer("Yes", add_special_tokens=False).input_ids
    assert lm.tokenizer.convert_ids_to_tokens(alone) == ["▁Yes"], "as it was trained before"


@pytest.mark.parametrize(("chat", "end"), [(None, "</s>"), (CHAT, "<|end|>"), (TEMPLATE, "<|end|>")])
def test_text_ends_with_the_token_that_ends_a_turn(chat, end, tiny):
    """Llama-3's EOS is not what its template ends a turn with."""
    lm = policy_of(tiny, chat=chat)
    assert lm.tokenizer.eos_token == "</s>"
    assert lm.tokenizer.convert_ids_to_tokens(lm.end) == end
    assert {lm.pair_tokens(PAIRS[0], 512).chosen[-1], lm.pair_tokens(PAIRS[0], 512).rejected[-1]} == {lm.end}


def test_what_was_sampled_is_what_is_trained(tiny, tmp_path):
    """Ids survive files and labels, and so does the one of several end tokens that was drawn."""
    lm = tiny(seed=3)
    lm.model.generation_config.eos_token_id = ends = [0, *range(100, 140)]
    decoding = Decoding(temperature=1.0, max_new_tokens=12)
    candidates = sample(lm, [Prompt(f"Film {i}:", "train") for i in range(8)], decoding, 2, seed=1)
    drawn = {candidate.end for candidate in candidates if not candidate.truncated}
    assert len(drawn) > 1
    assert drawn <= set(ends)
    assert all((candidate.end is None) == candidate.truncated for candidate in candidates)
    usable = [candidate for candidate in candidates if candidate.completion]
    scores = {candidate.key: float(place) for place, candidate in enumerate(candidates)}
    labelled, _ = to_pairs(candidates, scores, "candidates.jsonl")
    write_rows(tmp_path / "pairs.jsonl", labelled)
    by_text = {(candidate.prompt, candidate.completion): candidate for candidate in usable}
    for pair in read_rows(tmp_path / "pairs.jsonl", Pair):
        tokens = lm.pair_tokens(pair, 512)
        for text, ids in ((pair.chosen, tokens.chosen), (pair.rejected, tokens.rejected)):
            one = by_text[pair.prompt, text]
            assert ids == (one.token_ids if one.truncated else (*one.token_ids, one.end))
    assert read_rows(tmp_path / "pairs.jsonl", Pair) == labelled


def test_text_beside_a_sample(tiny):
    """A pair of both: the text's ids are its own, the sample's are as given, cut at the same length."""
    lm = policy_of(tiny, chat=CHAT)
    ids = tuple(lm.tokenizer.convert_tokens_to_ids(["▁No", "not", "</s>"]))
    pair = replace(PAIRS[2], rejected_ids=ids)
    assert lm.pair_tokens(pair, 512).rejected == ids
    assert lm.pair_tokens(pair, 512).chosen == lm.pair_tokens(PAIRS[2], 512).chosen
    prompt = len(lm.prompt_ids("good"))
    cut = lm.pair_tokens(pair, prompt + 2)
    assert (cut.chosen, cut.rejected, cut.cut) == (lm.pair_tokens(PAIRS[2], 512).chosen, ids[:2], 1)


def test_a_token_that_spans_prompt_and_text(tiny):
    """TRL starts the completion there; what spans the whole prompt is refused."""
    lm = policy_of(tiny)
    found = lm.pair_tokens(Pair("Is it goo", "d ?", "d and warm", "off", 1.0), 512)
    words = lm.tokenizer.convert_ids_to_tokens
    assert words(found.prompt) == ["▁Is", "▁it"]
    assert words(found.chosen) == ["▁good", "▁?", "</s>"]
    with pytest.raises(BadData, match="one token spans it and a completion"):
        lm.pair_tokens(Pair("goo", "d", "d ?", "off", 1.0), 512)


def test_old_rows_without_an_end_are_text(tiny):
    """A completion that ended, but by which token is not known, is tokenised with its prompt."""
    lm = tiny()
    (one, _) = sample(lm, [Prompt("A film:", "train")], Decoding(max_new_tokens=300), 2, seed=1)
    assert replace(one, truncated=False, end=None).sampled is None
    assert replace(one, truncated=True, end=None).sampled == one.token_ids
