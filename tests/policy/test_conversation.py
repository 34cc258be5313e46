"""Conversations for chat templates of many kinds, and for models without one."""

import pytest
from factory_models import CHAT

from stagealign.policy.conversation import (
    RefusedByTemplate,
    decoder,
    plain_form,
    plain_prompt,
    rendered_answer,
    rendered_prompt,
)
from stagealign.policy.start import byte_tokenizer

SYSTEM, USER, ANSWER, PREFILL = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("assistant", "Sure, "))
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)
"""Like Gemma's and Mistral's: no system role, roles alternate, white space is trimmed."""
SKIPS = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }} {% elif m.role == 'assistant' %}"
    "A:{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
"""Like the first one of Phi-3: turns of other roles are skipped."""
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go on\n\nAssistant:"


def tokenizer(template):
    made = byte_tokenizer()
    made.chat_template = template
    return made


def test_turns_stay_turns_and_hh_text_becomes_turns():
    chat = tokenizer(CHAT)
    assert rendered_prompt(chat, "Hi") == "<user>Hi\n<assistant>"
    assert rendered_prompt(chat, [SYSTEM, USER]) == "<system>Be brief.\n<user>Hi\n<assistant>"
    assert rendered_prompt(chat, HH) == "<user>Hi\n<assistant>Yes?\n<user>Go on\n<assistant>"
    assert rendered_answer(chat, [SYSTEM, USER], "Oh") == "<system>Be brief.\n<user>Hi\n<assistant>Oh\n"
    assert rendered_answer(chat, HH, "Oh") == "<user>Hi\n<assistant>Yes?\n<user>Go on\n<assistant>Oh\n"


@pytest.mark.parametrize(("template", "prefilled"), [(CHAT, "<assistant>Sure, "), (ALTERNATE, "[assistant]Sure,")])
def test_a_prefill_is_continued(template, prefilled):
    chat = tokenizer(template)
    prompt = rendered_prompt(chat, [USER, PREFILL])
    assert prompt.endswith(prefilled)
    assert prompt.count("assistant") == 1
    assert prefilled.strip() + " Lima" in rendered_answer(chat, [USER, PREFILL], "Lima")


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (ALTERNATE, [SYSTEM, USER], "refuses the conversation .roles must alternate"),
        (ALTERNATE, [USER, USER], "refuses the conversation .roles must alternate"),
        (SKIPS, [SYSTEM, USER], "leaves out a turn of role 'system'"),
        (CHAT, [{"role": "User", "content": "Hi"}], "a turn has the role 'User'"),
        (CHAT, [{"role": "critic", "content": "Hi"}], "a turn has the role 'critic'"),
        ("{{ messages[1].content }}", [USER], "refuses the conversation|leaves out a turn"),
        ("{{ messages[0].content + 1 }}", [USER], "refuses the conversation"),
        ("{{ messages[0].content.missing() }}", [USER], "refuses the conversation"),
    ],
)
def test_a_conversation_that_a_template_does_not_take_is_refused_with_the_reason(template, turns, reason):
    chat = tokenizer(template)
    with pytest.raises(RefusedByTemplate, match=reason):
        rendered_prompt(chat, turns)
    with pytest.raises(RefusedByTemplate, match=reason):
        rendered_answer(chat, turns, "Oh")


def test_template_arguments_reach_the_template():
    chat = tokenizer(CHAT + "{% if enable_thinking is false %}<think></think>{% endif %}")
    assert rendered_prompt(chat, "Hi", {"enable_thinking": False}).endswith("<assistant><think></think>")
    assert rendered_prompt(chat, "Hi").endswith("<assistant>")


def test_without_a_template_marks_of_hh_stay_and_turns_get_marks():
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER)
    text = "user: Hi\n\nassistant: Yes?\n\nuser: Hi"
    assert plain_prompt(plain_form(HH, turns)) == HH
    assert plain_prompt(plain_form(text, turns)) == f"{text}\n\nassistant:"
    assert plain_prompt([USER]) == "Hi"
    assert plain_prompt([USER, PREFILL]) == "user: Hi\n\nassistant: Sure, "


@pytest.mark.parametrize(("pieces", "starts"), [("$A <|endoftext|>", ""), ("<s> $A </s>", "<s>"), ("$A", "")])
def test_a_prompt_without_a_template_does_not_end_in_eos(tiny, pieces, starts):
    from tokenizers.processors import TemplateProcessing

    model = tiny()
    inner = model.tokenizer._tokenizer
    inner.add_special_tokens(["<s>", "</s>"])
    marks = [(one, inner.token_to_id(one)) for one in ("<s>", "</s>", "<|endoftext|>")]
    inner.post_processor = TemplateProcessing(pieces, None, marks)
    assert model.tokenizer.decode(model.prompt_ids("Hi")) == f"{starts}Hi"


def test_marks_of_reasoning_are_decoded_though_special():
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|im_end|>"]})
    ids = made("<think>a</think>b<|im_end|>", add_special_tokens=False).input_ids
    assert made.decode(ids, skip_special_tokens=True) == "ab"
    assert decoder(made)(ids) == "<think>a</think>b"
