"""Conversations in rows: system texts, earlier turns, tools, roles, lists in text, and each turn once."""

import json

import pytest
from factory_files import file, refused

from stagealign.data.preferences import read_preferences

Q, A, B = "What is the capital of Peru?", "It is Lima.", "It is Cusco."


def said(content, role="user"):
    return {"role": role, "content": content}


def answers(**more):
    return {"chosen": [said(A, "assistant")], "rejected": [said(B, "assistant")]} | more


SYSTEM, USER = said("Be brief.", "system"), said(Q)
HI = (said("Hi"), said("Hello.", "assistant"))


def turns(tmp_path, row, ending="jsonl"):
    (found,) = read_preferences(file(tmp_path, [row], ending)).rows
    assert (found.chosen, found.rejected) == (A, B)
    return found.prompt


def reason(tmp_path, row):
    """The reason why the first of two rows is dropped."""
    data = read_preferences(
        file(tmp_path, [row, {name: value for name, value in PLAIN.items() if name in row} | PLAIN])
    )
    (found,) = data.drops
    assert len(data.rows) == 1
    assert f"{found}: 1 (line 1)" in " ".join(data.notes())
    return found


PLAIN = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
BESIDE = {"prompt": Q, "chosen": A, "rejected": B}


@pytest.mark.parametrize("column", ["system", "system_prompt", "System Prompt", "system_message"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_system_column_is_a_turn(tmp_path, column, ending):
    assert turns(tmp_path, {column: "Be brief."} | BESIDE, ending) == (SYSTEM, USER)
    assert turns(tmp_path, {column: ""} | BESIDE, ending) == Q


def test_a_system_column_beside_conversations(tmp_path):
    assert turns(tmp_path, answers(system="Be brief.", prompt=[USER])) == (SYSTEM, USER)
    assert turns(tmp_path, answers(system="Be brief.", prompt=[SYSTEM, USER])) == (SYSTEM, USER)
    assert turns(tmp_path, {"system": "Be brief.", "chosen": [USER, said(A, "assistant")],
                            "rejected": [USER, said(B, "assistant")]}) == (SYSTEM, USER)  # fmt: skip
    assert "differs" in reason(tmp_path, answers(system="Other.", prompt=[SYSTEM, USER]))
    hh = f"\n\nHuman: {Q}\n\nAssistant:"
    assert turns(tmp_path, {"system": "Be brief.", "prompt": hh, "chosen": A, "rejected": B}) == (SYSTEM, USER)


@pytest.mark.parametrize(
    "history",
    [[["Hi", "Hello."]], list(HI), json.dumps([["Hi", "Hello."]]), str(list(HI))],
    ids=["pairs", "messages", "json", "python"],
)
def test_earlier_turns_are_turns(tmp_path, history):
    """Source: LLaMA-Factory data/README.md (`history` of pairs), ms-swift 2."""
    row = {"system": "Be brief.", "history": history, "instruction": Q, "input": "", "chosen": A, "rejected": B}
    assert turns(tmp_path, row) == (SYSTEM, *HI, USER)
    assert turns(tmp_path, answers(history=[], prompt=[USER])) == (USER,)


def test_earlier_turns_that_cannot_be_read(tmp_path):
    assert reason(tmp_path, BESIDE | {"history": "He said hello."}) == "`history` is not a list of turns"
    assert "pairs of texts" in reason(tmp_path, BESIDE | {"history": [["one"]]})


@pytest.mark.parametrize(
    "column", ["tools", "functions", "tool_calls", "images", "image", "videos", "audio", "image_url"]
)
def test_tools_and_media_are_counted(tmp_path, column):
    assert reason(tmp_path, BESIDE | {column: ["x"]}) == f"uses `{column}`, which are not rendered"
    for nothing in ([], "", None, "[]", {}):
        assert turns(tmp_path, BESIDE | {column: nothing}) == Q


CALL = said("", "assistant") | {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
TOOLS = {
    "a call in the prompt": answers(prompt=[USER, CALL, said("3", "tool")]),
    "a tool's answer": answers(prompt=[USER, said("3", "tool")]),
    "a call is chosen": answers(prompt=[USER]) | {"chosen": [CALL]},
    "ShareGPT": answers(prompt=[USER, {"from": "observation", "value": "3"}]),
    "an image": answers(prompt=[said([{"type": "image"}, {"type": "text", "text": Q}])]),
}


@pytest.mark.parametrize("name", TOOLS)
def test_turns_of_tools_are_counted(tmp_path, name):
    assert any(word in reason(tmp_path, TOOLS[name]) for word in ("tool", "type 'image'"))


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("User", "Assistant"),
        ("HUMAN", "GPT"),
        ("prompter", "bot"),
        ("human", "model"),
        ("user", "chatgpt"),
        ("user ", "AI"),
    ],
)
def test_roles_are_those_of_templates(tmp_path, user, assistant):
    """Sources: OpenAssistant `prompter`, ShareGPT `human`, `gpt`, `chatgpt`, Gemma `model`."""
    row = {"chosen": [said(Q, user), said(A, assistant)], "rejected": [said(Q, user), said(B, assistant)]}
    assert turns(tmp_path, row) == (USER,)


def test_other_roles_are_named_with_their_rows(tmp_path):
    row = {
        "chosen": [said(Q, "narrator"), said(A, "assistant")],
        "rejected": [said(Q, "narrator"), said(B, "assistant")],
    }
    message = refused(lambda: read_preferences(file(tmp_path, [row])), "the role 'narrator'", "(line 1)")
    assert "user, assistant and system" in message


def numpy_text(messages):
    """What pandas writes into a CSV cell for an array of objects."""
    return "[" + "\n ".join(map(str, messages)) + "]"


@pytest.mark.parametrize(
    "write", [json.dumps, str, numpy_text, lambda m: f"array({m}, dtype=object)", lambda m: json.dumps(m, indent=1)],
    ids=["json", "python", "numpy", "array", "indented"],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_lists_in_text_are_read(tmp_path, write, ending):
    asked = said("It's \"quoted\"\nnext: {'role': 1}")
    row = {"chosen": write([asked, said(A, "assistant")]), "rejected": write([asked, said(B, "assistant")])}
    assert turns(tmp_path, row, ending) == (asked,)
    sharegpt = [{"from": "human", "value": Q}]
    row = {"conversations": write(sharegpt), "chosen": write([{"from": "gpt", "value": A}]),
           "rejected": write([{"from": "gpt", "value": B}])}  # fmt: skip
    assert turns(tmp_path, row, ending) == (USER,)


def test_lists_in_text_are_never_run_and_other_lists_stay_text(tmp_path):
    evil = "[{'role': 'user', 'content': __import__('os').getcwd()}]"
    assert "cannot be read to its end" in reason(tmp_path, {"prompt": evil, "chosen": "a", "rejected": "b"})
    cut = json.dumps([USER])[:-3]
    assert "cannot be read to its end" in reason(tmp_path, {"prompt": cut, "chosen": "a", "rejected": "b"})
    row = {"prompt": "Give JSON.", "chosen": '[{"name": 1}]', "rejected": "{'a': [1]}"}
    (found,) = read_preferences(file(tmp_path, [row])).rows
    assert (found.chosen, found.rejected) == ('[{"name": 1}]', "{'a': [1]}")


WHOLE = {"chosen": [USER, said(A, "assistant")], "rejected": [USER, said(B, "assistant")]}
ONCE = {
    "system in the prompt alone": (WHOLE | {"prompt": [SYSTEM, USER]}, (SYSTEM, USER)),
    "earlier turns in the prompt alone": (WHOLE | {"prompt": [*HI, USER]}, (*HI, USER)),
    "the last turn is the prompt": (
        {"prompt": [USER], "chosen": [*HI, *WHOLE["chosen"]], "rejected": [*HI, *WHOLE["rejected"]]}, (*HI, USER),
    ),
    "the first turn is the prompt": (
        {"prompt": "Hi", "chosen": [*HI, *WHOLE["chosen"]], "rejected": [*HI, *WHOLE["rejected"]]}, (*HI, USER),
    ),
    "a system turn only": (WHOLE | {"prompt": [SYSTEM]}, (SYSTEM, USER)),
    "white space": (WHOLE | {"prompt": [said(f" {Q}\n")]}, (USER,)),
    "text with white space": (WHOLE | {"prompt": f"{Q}\n"}, (USER,)),
    "the chosen answer stands in the prompt": (answers(prompt=[USER, said(A, "assistant")]), (USER,)),
    "a prefill stays": (answers(prompt=[USER, said("Sure, ", "assistant")]), (USER, said("Sure, ", "assistant"))),
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
def test_each_turn_stands_once(tmp_path, name):
    row, expected = ONCE[name]
    assert turns(tmp_path, row) == expected


def test_prompts_that_are_not_those_of_the_answers_are_counted(tmp_path):
    assert "not among the turns" in reason(tmp_path, WHOLE | {"prompt": "Something else?"})
    assert "do not continue" in reason(tmp_path, WHOLE | {"prompt": [USER, said("Another.", "assistant")]})
    assert "do not continue" in reason(tmp_path, WHOLE | {"prompt": [said("Something else?")]})
