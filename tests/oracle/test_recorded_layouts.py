"""Recorded verdicts in the columns of other programs."""

import json

import pytest
from factory_files import file, refused

from stagealign.oracle.recorded import RecordedOracle
from stagealign.oracle.recorded_file import read_recorded
from stagealign.scoring.contest import Contest


def said(content, role="user"):
    return {"role": role, "content": content}


def conversation(asked, answered):
    return [said(asked), said(answered, "assistant")]


FILES = {
    # lmsys/chatbot_arena_conversations; lmsys/lmsys-arena-human-preference-55k
    "Arena responses": lambda q, a, b, win: {
        "prompt": q, "response_a": a, "response_b": b, "model_a": "x", "model_b": "y",
        "winner": {1: "model_a", 0: "model_b", 0.5: "tie (bothbad)"}[win],
    },
    "Arena conversations": lambda q, a, b, win: {
        "conversation_a": conversation(q, a), "conversation_b": conversation(q, b),
        "winner": {1: "model_a", 0: "model_b", 0.5: "tie"}[win],
    },
    "Arena 55k": lambda q, a, b, win: {
        "prompt": json.dumps([q]), "response_a": json.dumps([a]), "response_b": json.dumps([b]),
        "winner_model_a": int(win == 1), "winner_model_b": int(win == 0), "winner_tie": int(win == 0.5),
    },
    # alpaca_eval 0.6, annotations.json
    "AlpacaEval": lambda q, a, b, win: {"instruction": q, "output_1": a, "output_2": b, "preference": 2 - win},
    # nvidia/HelpSteer3
    "HelpSteer 3": lambda q, a, b, win: {
        "context": [said(q)], "response1": a, "response2": b, "overall_preference": {1: -2, 0: 1, 0.5: 0}[win],
    },
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FILES)
def test_verdicts_of_other_programs(tmp_path, name, ending):
    judged = [("p?", "x", "s", 1), ("q?", "x", "s", 0), ("r?", "x", "s", 0.5)]
    recorded = read_recorded(file(tmp_path, [FILES[name](*one) for one in judged], ending))
    assert (recorded.form, recorded.given, recorded.used, recorded.failures) == ("pairs", 3, 3, 0)
    found = RecordedOracle(recorded).judge([Contest(prompt, ("x",), ("s",)) for prompt, *_ in judged])
    assert [one.won for one in found] == [(1.0,), (0.0,), (0.5,)]


def test_other_columns_are_named(tmp_path):
    rows = [{"prompt": "p", "left": "x", "right": "s", "better": "left"}]
    words = ("found: prompt, left, right, better", "prompt, a, b, preference", "response_a, response_b, winner")
    refused(lambda: read_recorded(file(tmp_path, rows)), *words)
    rows = [{"prompt": "p", "response_a": "x", "response_b": "s", "winner": word} for word in ("model_a", "nobody")]
    recorded = read_recorded(file(tmp_path, rows))
    assert (recorded.used, sum(recorded.drops.values())) == (1, 1)


def test_texts_that_look_like_messages_stay_texts(tmp_path):
    """A policy may write JSON; its text must be found again."""
    text = json.dumps([said("x")])
    recorded = read_recorded(file(tmp_path, [{"prompt": "p", "a": text, "b": "s", "preference": 1}]))
    (found,) = RecordedOracle(recorded).judge([Contest("p", (text,), ("s",))])
    assert found.won == (1.0,)
