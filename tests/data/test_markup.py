"""Text that a template has already written, turns with labels, and prompts that stand in the answers as well."""

import pytest
from factory_files import file, refused

from stagealign.data.preferences import read_preferences

Q, A, B, SYSTEM = "What is the capital of Peru?", "It is Lima.", "It is Cusco.", "Be brief."
USER = {"role": "user", "content": Q}


def read(tmp_path, *rows):
    return read_preferences(file(tmp_path, list(rows)))


def one(tmp_path, row):
    """The only row of a file as (prompt, chosen, rejected), and the notes."""
    data = read(tmp_path, row)
    (found,) = data.rows
    return (found.prompt, found.chosen, found.rejected), " ".join(data.notes())


# start of the prompt's turn, end of it, start of the answer, end of the answer; from the models' chat templates
TEMPLATES = {
    "ChatML": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    "Phi-4": ("<|im_start|>user<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "Llama 4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n", "<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n", "<|eot|>",
    ),
    "Gemma": ("<bos><start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
    "gpt-oss": ("<|start|>user<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>", "<|return|>"),
    "Granite": (
        "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>",
    ),
    "Command R": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    ),
    "DeepSeek": ("<｜begin▁of▁sentence｜><｜User｜>", "", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "Zephyr": ("<|user|>\n", "</s>\n", "<|assistant|>\n", "</s>\n"),
    "Phi-3": ("<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n"),
    "OpenAssistant": ("<|prompter|>", "<|endoftext|>", "<|assistant|>", "<|endoftext|>"),
    "Mistral": ("<s>[INST] ", "", " [/INST]", "</s>"),
    "Alpaca": (
        "Below is an instruction that describes a task.\n\n### Instruction:\n", "\n\n", "### Response:\n", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_markup_is_read_as_turns_wherever_it_is_cut(tmp_path, name):
    """The answer's header stands in the prompt, in the answers, or the whole text stands in both answers."""
    start, end, header, stop = TEMPLATES[name]
    asked = f"{start}{Q}{end}"
    cuts = {
        "in the prompt": {"prompt": asked + header, "chosen": A + stop, "rejected": B + stop},
        "in the answers": {"prompt": asked, "chosen": header + A + stop, "rejected": header + B + stop},
        "whole": {"chosen": asked + header + A + stop, "rejected": asked + header + B + stop},
        "repeated": {
            "prompt": asked + header, "chosen": asked + header + A + stop, "rejected": asked + header + B + stop,
        },
    }  # fmt: skip
    if name in ("Mistral", "Alpaca"):  # their answers have no header of a whole turn
        del cuts["in the answers"]
    for cut, row in cuts.items():
        found, notes = one(tmp_path, row)
        assert found == ((USER,), A, B), cut
        assert "template markup" in notes, cut


def test_system_turns_in_markup(tmp_path):
    expected = (({"role": "system", "content": SYSTEM}, USER), A, B)
    for prompt in (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n",
        f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{Q} [/INST]",
        f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{Q}<｜Assistant｜>",
        f"A chat between a user and an AI. USER: {Q} ASSISTANT:".replace(
            "A chat between a user and an AI.", "SYSTEM: Be brief."
        ),
    ):
        assert one(tmp_path, {"prompt": prompt, "chosen": A, "rejected": B})[0] == expected
    empty = {"prompt": f"<|system|>\n</s>\n<|user|>\n{Q}</s>\n<|assistant|>\n", "chosen": A, "rejected": B}
    assert one(tmp_path, empty)[0] == ((USER,), A, B)


def test_markup_that_is_not_whole_turns_is_counted(tmp_path):
    inside = {"prompt": Q, "chosen": f"{A}<|im_end|>\n<|im_start|>user\nMore?", "rejected": B}
    tool = {"prompt": "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n", "chosen": A, "rejected": B}
    turns = {"prompt": [{"role": "user", "content": "<|start_header_id|>user"}], "chosen": A, "rejected": B}
    data = read(tmp_path, inside, tool, turns, {"prompt": Q, "chosen": A, "rejected": B})
    assert len(data.rows) == 1
    assert sorted(data.drops) == [
        "`prompt` has a tool's turn (role 'tool'), which is not rendered",
        "template markup (ChatML) in the middle of `chosen`",
        "template markup inside of `prompt`",
    ]


@pytest.mark.parametrize(
    "text", ["<s>old price</s>", "a <b> c", "# Title\n### Response: none", "List [INST] of it", "x </s>y", "| a |> b"]
)
def test_plain_text_with_such_signs_stays(tmp_path, text):
    row = {"prompt": f"{text}?", "chosen": text, "rejected": f"{text}!"}
    found, notes = one(tmp_path, row)
    assert found == (f"{text}?", text, f"{text}!")
    assert not notes


LABELS = {
    "lines": "User: {}\nAssistant: {}",
    "blank lines": "User: {}\n\nAssistant: {}",
    "one line": "Human: {} Assistant: {}",
    "capitals": "USER: {} ASSISTANT: {}",
    "bot": "Human: {}\nBot: {}",
    "headings": "### Human: {}\n### Assistant: {}",
    "headings in one line": "### Human: {}### Assistant: {}",
}


@pytest.mark.parametrize("name", LABELS)
def test_turns_with_labels_are_not_cut_inside_the_answer(tmp_path, name):
    """`Peru ...` starts both answers, so the start that they share ends inside of them."""
    text, good, bad = LABELS[name], "Peru has Lima.", "Peru has Cusco."
    found, notes = one(tmp_path, {"chosen": text.format(Q, good), "rejected": text.format(Q, bad)})
    assert found == ((USER,), good, bad)
    assert "read as turns" in notes
    asked = text.format(Q, "").rstrip()
    found, _ = one(tmp_path, {"prompt": asked, "chosen": f" {good}", "rejected": f" {bad}"})
    assert found == ((USER,), good, bad)


def test_several_labelled_turns(tmp_path):
    start = "User: Hi\nAssistant: Hello: you?\nUser: Why?\nAssistant:"
    found, _ = one(tmp_path, {"chosen": f"{start} Because: it.", "rejected": f"{start} Because: not."})
    assert [turn["content"] for turn in found[0]] == ["Hi", "Hello: you?", "Why?"]
    assert found[1:] == ("Because: it.", "Because: not.")
    parted = {"chosen": "User: Hi\nAssistant: a\nUser: x\nAssistant: b", "rejected": "User: Hi\nAssistant: c"}
    refused(lambda: read(tmp_path, parted), "part before their last turn")


def test_questions_and_answers_without_a_prompt_column(tmp_path):
    for text, prompt in (("Question: {}\nAnswer: {}", f"Question: {Q}\nAnswer:"), ("Q: {} A: {}", f"Q: {Q} A:")):
        found, notes = one(tmp_path, {"chosen": text.format(Q, "Peru: Lima"), "rejected": text.format(Q, "Peru: no")})
        assert found == (prompt, " Peru: Lima", " Peru: no")
        assert "no column of the prompt" in notes


def test_prompts_in_both_answers_are_taken_off(tmp_path):
    asked = f"Question: {Q}\nAnswer:"
    found, notes = one(tmp_path, {"prompt": asked, "chosen": f"{asked} {A}", "rejected": f"\n{asked} {B}"})
    assert found == (asked, f" {A}", f" {B}")
    assert "taken off: 1 (line 1)" in notes
    found, _ = one(tmp_path, {"prompt": [USER], "chosen": f"{Q} {A}", "rejected": f"{Q} {B}"})
    assert found == ((USER,), f" {A}", f" {B}")
    short = [{"prompt": f"{n}+2=", "chosen": f"{n}+2= 4", "rejected": f"{n}+2= 5"} for n in range(3)]
    assert {row.chosen for row in read(tmp_path, *short).rows} == {" 4"}, "every row of the file repeats it"


def test_what_is_not_a_repetition_stays(tmp_path):
    for row in (
        {"prompt": "Hi!", "chosen": "Hi! How are you?", "rejected": "Hi! What?"},  # a greeting
        {"prompt": Q, "chosen": f"{Q} {A}", "rejected": B},  # one answer quotes the question
        {"prompt": "Is it a can of", "chosen": "Is it a can often?", "rejected": "Is it a can of it?"},  # inside a word
    ):
        found, _ = one(tmp_path, row)
        assert found == tuple(row.values())
