"""Checkpoints with a quirk that is read right: pad ids, heads, templates, end tokens, wrappers; and what is said."""

import json
import shutil

import pytest
import torch
from factory_broken import JUDGE, OPENERS, PAIRRM, POLICY, REWARD, config, edit, template, whole

from stagealign.base.errors import StagealignError
from stagealign.boundary.open_policy import open_policy
from stagealign.boundary.request import BoundaryRequest
from stagealign.grid.spec import Decoding
from stagealign.oracle import pairrm
from stagealign.policy import lm, sample
from stagealign.policy.context import check_fits, context_of
from stagealign.policy.draw import draws
from stagealign.policy.templates import turn_end, turn_ends
from stagealign.scoring import reward_model
from stagealign.scoring.contest import Contest

CONTEST = Contest("Say it.", ("Yes", "No, never"), ("", "Perhaps"))
OPEN = {POLICY: lm.load, JUDGE: lm.load, REWARD: reward_model.load, PAIRRM: pairrm.load}
MARKS = ("<|eos|>", "<|end|>", "<|start|>", "<s>")


@pytest.fixture
def saved(tmp_path):
    """Factory of whole checkpoints with an edit."""

    def build(opener, *edits, name="c"):
        whole(tmp_path / name, opener)
        for change in edits:
            change(tmp_path / name)
        return str(tmp_path / name)

    return build


def answers(opener, name):
    """What the checkpoint writes or judges, for comparison."""
    one = OPEN[opener](name)
    if opener in (REWARD, PAIRRM):
        (found,) = one.judge([CONTEST])
        return (*found.on, *found.off)
    chance = [[draws(0, "key", 0, 8)], [draws(0, "other", 0, 8)]]
    groups = sample.generate(one, [one.prompt_ids("Hi"), one.prompt_ids("Hello")], chance, Decoding(max_new_tokens=8))
    return [text.ids for group in groups for text in group]


@pytest.mark.parametrize("opener", OPENERS[:3])
@pytest.mark.parametrize("pad", [-1, 99_999])
def test_a_pad_id_outside_of_the_embedding_is_none(opener, pad, saved):
    plain = saved(opener, config(pad_token_id=None), name="plain")
    found = answers(opener, saved(opener, config(pad_token_id=pad)))
    expected = answers(opener, plain)
    if opener == POLICY:
        assert found == expected
    else:
        assert found == pytest.approx(expected, abs=1e-6)


def added_pad(folder):
    """A pad token beyond the embedding, as people add one without resizing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"filler{i}" for i in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[EXTRA]"})
    assert tokenizer.pad_token_id == rows
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("opener", OPENERS[:3])
def test_a_pad_token_outside_of_the_embedding_reads_as_text(opener, saved):
    one = OPEN[opener](saved(opener, added_pad))
    rows = one.model.config.vocab_size
    assert max(one.tokenizer("before [EXTRA] after").input_ids) < rows
    if opener == POLICY:
        assert one.tokenizer.pad_token == one.tokenizer.eos_token
    else:
        (found,) = one.judge([Contest("Say [EXTRA]", ("[EXTRA]",), ("b",))])
        assert found.failed is None


@pytest.mark.parametrize("shape", ["llama", "bert"])
@pytest.mark.parametrize("said", [{"num_labels": None, "id2label": None, "label2id": None}, {"num_labels": 2}])
def test_a_head_of_one_row_is_a_reward_model_whatever_the_config_says(shape, said, tmp_path):
    from factory_rewards import save

    expected = [(*one.on, *one.off) for one in reward_model.load(save(tmp_path, shape)).judge([CONTEST])]
    edit(tmp_path / "config.json", **{"id2label": None, "label2id": None, **said})
    found = [(*one.on, *one.off) for one in reward_model.load(str(tmp_path)).judge([CONTEST])]
    assert found == expected


def with_marks(text, eos="<|eos|>"):
    """Gives the tokenizer special tokens and a template; the embedding has rows for them."""

    def make(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"eos_token": eos, "bos_token": "<s>", "additional_special_tokens": list(MARKS)})
        tokenizer.chat_template = text
        tokenizer.save_pretrained(folder)

    return make


PARTS = (
    "\n{% for m in messages %}<|start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Source: the form of Idefics3's and LLaVA-NeXT's templates."""


def test_a_template_for_contents_in_parts_is_given_parts(saved):
    policy = lm.load(saved(POLICY, with_marks(PARTS)))
    said = policy.tokenizer.decode(policy.prompt_ids("Say it."))
    assert said == "\n<|start|>user\nSay it.<|eos|>\n<|start|>assistant\n"
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    text = policy.tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "\n<|start|>system\nBe kind.<|eos|>\n<|start|>user\nHi<|eos|>\n"
    lm.check_ends(policy, "c")
    reward = reward_model.load(saved(REWARD, with_marks(PARTS), name="r"))
    turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Yes"}]
    assert (
        reward.tokenizer.apply_chat_template(turns, tokenize=False)
        == "\n<|start|>user\nSay it.<|eos|>\n<|start|>assistant\nYes<|eos|>\n"
    )


def turns(end, start="{% if add_generation_prompt %}<|start|>{% endif %}"):
    return "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}" + end + "\n{% endfor %}" + start


@pytest.mark.parametrize(
    ("end", "ends", "last"),
    [
        ("<|eos|>", ["<|eos|>"], "<|eos|>"),
        ("<|end|><|eos|>", ["<|end|>", "<|eos|>"], "<|eos|>"),
        ("<|eos|><|end|>", ["<|eos|>", "<|end|>"], "<|eos|>"),
        ("<|eos|><s>", ["<|eos|>"], "<|eos|>"),
        ("<|end|>", ["<|end|>"], "<|end|>"),
        ("<|start|><|end|>", ["<|start|>", "<|end|>"], "<|end|>"),
        ("<|end|><s>", ["<|end|>"], "<|end|>"),
        ("", [], None),
    ],
)
def test_a_turn_may_end_in_two_special_tokens(end, ends, last, saved):
    """Source of two tokens: Command A closes an answer and a turn, `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`."""
    policy = lm.load(saved(POLICY, with_marks(turns(end))))
    tokenizer = policy.tokenizer
    assert tokenizer.convert_ids_to_tokens(turn_ends(tokenizer, "c")) == ends
    assert turn_end(tokenizer, "c") == (last and tokenizer.convert_tokens_to_ids(last))
    if last in (None, "<|eos|>"):
        lm.check_ends(policy, "c")
        return
    with pytest.raises(
        StagealignError, match=f"set `eos_token` in tokenizer_config.json to '{last.replace('|', '.')}'"
    ):
        lm.check_ends(policy, "c")


def test_end_tokens_outside_of_the_vocabulary_end_nothing(saved):
    name = saved(POLICY, lambda folder: edit(folder / "generation_config.json", eos_token_id=[-1, 5, 99_999]))
    assert lm.end_ids(lm.load(name)) == lm.end_ids(lm.load_shape(name)) == [0, 5]


def appends_eos(folder):
    """Takes the template away, and has the tokenizer put EOS after each text, as some Llama tokenizers do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer._tokenizer.post_processor = TemplateProcessing(f"$A {eos[0]}", f"$A {eos[0]} $B {eos[0]}", [eos])
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()


def test_a_prompt_does_not_end_in_the_eos_that_a_tokenizer_appends(saved):
    plain, eos = lm.load(saved(POLICY)), lm.load(saved(POLICY, appends_eos, name="eos"))
    assert eos.tokenizer("Hi").input_ids[-1] == eos.tokenizer.eos_token_id
    assert eos.prompt_ids("Hi") == plain.prompt_ids("Hi", template=False)
    assert eos.prompt_ids("Hi<|endoftext|>") == plain.prompt_ids("Hi<|endoftext|>", template=False)


NATIVE = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}


def test_code_of_the_same_name_is_not_run_and_the_native_class_is_said(saved):
    name = saved(POLICY, config(auto_map=NATIVE))
    opened = open_policy(BoundaryRequest(name, "data", decoding=Decoding(max_new_tokens=4)))
    assert any(
        "code of its own (`auto_map`), which is never run; the class of that name" in one for one in opened.notes
    )
    assert not any("auto_map" in one for one in open_policy(BoundaryRequest(saved(POLICY, name="p"), "data")).notes)
    with pytest.raises(StagealignError, match="transformers has that type; delete `auto_map`"):
        reward_model.load(saved(REWARD, config(auto_map={"AutoConfig": NATIVE["AutoConfig"]}), name="r"))


def test_a_named_default_template_is_taken(saved):
    def named(folder):
        text = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        both = [{"name": "default", "template": text}, {"name": "tool_use", "template": "{{ tools }}"}]
        edit(folder / "tokenizer_config.json", chat_template=both)

    assert lm.load(saved(POLICY, named)).prompt_ids("Hi") == lm.load(saved(POLICY, name="p")).prompt_ids("Hi")


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """A Gemma 3 with eyes, of one layer each."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = tmp_path_factory.mktemp("wrapper")
    whole(folder, POLICY)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"vocab_size": 264, "head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 64}
    seen = shape | {"image_size": 28, "patch_size": 14}
    known = Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=4)
    torch.manual_seed(0)
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    Gemma3ForConditionalGeneration(known).save_pretrained(folder)
    return folder


def test_a_wrapper_with_images_is_a_policy_of_text(wrapper, tmp_path):
    policy = lm.load(wrapper)
    assert context_of(policy) == context_of(lm.load_shape(wrapper)) == 64
    with pytest.raises(StagealignError, match="fill the policy's context of 64"):
        check_fits(policy, "a prompt", 64, Decoding(max_new_tokens=10))
    shutil.copytree(wrapper, tmp_path / "c")
    edit(tmp_path / "c" / "config.json", model_type="llava", text_config={"model_type": "llama"})
    with pytest.raises(
        StagealignError, match=r"'llava', with parts for images or sound.*name the language model inside"
    ):
        lm.load(tmp_path / "c")


def test_a_reward_model_that_cannot_score_is_refused_when_it_is_opened(saved, monkeypatch):
    from transformers import LlamaForSequenceClassification

    def fails(*_, **__):
        raise IndexError("index out of range\nin self")

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", fails)
    with pytest.raises(StagealignError, match=r"does not score a short text .index out of range.; use a reward model"):
        reward_model.load(saved(REWARD))


def test_positions_that_start_behind_the_pad_shorten_what_is_read(tmp_path):
    """RoBERTa counts positions from its pad id on: 66 rows read 64 tokens."""
    from factory_rewards import pair_tokenizer
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    known = RobertaConfig(vocab_size=264, max_position_embeddings=66, pad_token_id=1, num_labels=1, **size)
    AutoModelForSequenceClassification.from_config(known).save_pretrained(tmp_path)
    pair_tokenizer().save_pretrained(tmp_path)
    oracle = reward_model.load(str(tmp_path))
    assert oracle.max_length == 64
    (found,) = oracle.judge([Contest("Say it.", ("a" * 100,), ("b",))])
    assert (found.failed, found.truncated) == (None, 1)


def test_a_template_of_a_reward_model_is_not_asked_for_where_it_is_not_used(saved):
    name = saved(REWARD, template("{{ raise_exception('no') }}"))
    assert reward_model.load(name, text="completion").text == "completion"
