"""Layouts of preference files: each one read from invented rows with its real columns, and nothing passed over.

Sources of the columns: the dataset cards of the data sets that are named, and the documentation of the programs.
"""

import json
from pathlib import Path

import pytest
from factory_files import file, refused

from stagealign.data.layouts import LAYOUTS
from stagealign.data.preferences import read_preferences

ASKED = ("What is the capital of Peru?", "How many legs has a spider?", "Name a noble gas.")
GOOD = ("It is Lima.", "Eight legs.", "Argon is one.")
BAD = ("It is Cusco.", "Six legs, like all insects.", "Oxygen is one.")


def said(content, role="user"):
    return {"role": role, "content": content}


def answer(content):
    return [said(content, "assistant")]


def share(content, who="human"):
    return {"from": who, "value": content}


def label_studio(asked, good, bad):
    result = [{"type": "pairwise", "value": {"selected": "right"}}]
    return {"data": {"prompt": asked, "answer1": bad, "answer2": good}, "annotations": [{"result": result}]}


def ranking(asked, good, bad):
    value = [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}]
    votes = [{"user_id": "u", "status": "submitted", "value": value}]
    return {"prompt": asked, "response-1": bad, "response-2": good, "preference": votes}


ROWS = {
    # TRL 1.16, docs/dataset_formats: preference, explicit and implicit prompt, text and conversations
    "TRL": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "TRL messages": lambda q, a, b: {"prompt": [said(q)], "chosen": answer(a), "rejected": answer(b)},
    "TRL implicit": lambda q, a, b: {"chosen": [said(q), *answer(a)], "rejected": [said(q), *answer(b)]},
    # HuggingFaceH4/ultrafeedback_binarized: `messages` repeats the chosen conversation
    "UltraFeedback binarized": lambda q, a, b: {
        "prompt": q, "prompt_id": "x", "chosen": [said(q), *answer(a)], "rejected": [said(q), *answer(b)],
        "messages": [said(q), *answer(a)], "score_chosen": 8.0, "score_rejected": 4.0,
    },
    # LLaMA-Factory 0.9, data/README.md: sharegpt preference, alpaca preference; older alpaca with two outputs
    "ShareGPT ranking": lambda q, a, b: {
        "conversations": [share(q)], "chosen": share(a, "gpt"), "rejected": share(b, "gpt"),
    },
    "alpaca": lambda q, a, b: {"instruction": q, "input": "", "chosen": a, "rejected": b},
    "alpaca outputs": lambda q, a, b: {"instruction": q, "input": "", "output": [a, b]},
    # axolotl, prompt_strategies/dpo: chat_template.default, chatml.intel, chatml.icr, llama3.argilla
    "axolotl": lambda q, a, b: {"messages": [said(q)], "chosen": answer(a)[0], "rejected": answer(b)[0]},
    "Orca": lambda q, a, b: {"question": q, "chosen": a, "rejected": b},
    "distilabel pairs": lambda q, a, b: {
        "input": q, "chosen": a, "rejected": b, "generations": [b, a], "rating": [1, 9],
    },
    "Argilla": lambda q, a, b: {"instruction": q, "chosen_response": a, "rejected_response": b, "chosen_avg_rating": 5},
    # Argilla 1.x, RankingQuestion in the hub's format
    "Argilla ranking": ranking,
    # OpenAI, Together and Fireworks, guides to direct preference optimization
    "OpenAI": lambda q, a, b: {
        "input": {"messages": [said(q)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": answer(a), "non_preferred_output": answer(b),
    },
    # ms-swift, docs/Customization/Custom-dataset; and 2.x with query and response
    "ms-swift": lambda q, a, b: {"messages": [said(q), *answer(a)], "rejected_response": b},
    "ms-swift messages": lambda q, a, b: {
        "messages": [said(q), *answer(a)], "rejected_messages": [said(q), *answer(b)],
    },
    "ms-swift 2": lambda q, a, b: {"query": q, "response": a, "rejected_response": b},
    # lvwerra/stack-exchange-paired: j was voted higher
    "Stack Exchange": lambda q, a, b: {"qid": 1, "question": q, "response_j": a, "response_k": b, "metadata": []},
    # distilabel, UltraFeedback task: ratings in the order of the generations
    "distilabel": lambda q, a, b: {"instruction": q, "generations": ["Some.", b, a], "ratings": [3, 1, 5]},
    # openbmb/UltraFeedback
    "UltraFeedback": lambda q, a, b: {
        "source": "s", "instruction": q, "models": ["m", "n"],
        "completions": [{"response": b, "overall_score": 4.0}, {"response": a, "overall_score": 8.5}],
    },
    # berkeley-nest/Nectar: rank 1 is the best
    "Nectar": lambda q, a, b: {
        "prompt": q, "answers": [{"answer": b, "rank": 7.0}, {"answer": a, "rank": 1.0}, {"answer": "c", "rank": 2.0}],
        "turns": 1, "num_responses": 3, "source": ["x"], "good_natured": True,
    },
    # stanfordnlp/SHP: labels is 1 if A is preferred
    "SHP": lambda q, a, b: {"post_id": "p", "history": q, "human_ref_A": b, "human_ref_B": a, "labels": 0},
    # nvidia/HelpSteer3: negative if response1 is better; HelpSteer2 preference has the same sign
    "HelpSteer 3": lambda q, a, b: {
        "domain": "general", "context": [said(q)], "response1": b, "response2": a, "overall_preference": 2,
    },
    "HelpSteer 2": lambda q, a, b: {"prompt": q, "response_1": a, "response_2": b, "preference_strength": -1},
    # PKU-Alignment/PKU-SafeRLHF
    "PKU-SafeRLHF": lambda q, a, b: {
        "prompt": q, "response_0": b, "response_1": a, "better_response_id": 1, "safer_response_id": 0,
    },
    # lmsys/chatbot_arena_conversations, lmsys/lmsys-arena-human-preference-55k
    "Arena": lambda q, a, b: {
        "model_a": "x", "model_b": "y", "winner": "model_b",
        "conversation_a": [said(q), *answer(b)], "conversation_b": [said(q), *answer(a)],
    },
    "Arena responses": lambda q, a, b: {"prompt": q, "response_a": a, "response_b": b, "winner": "model_a"},
    "Arena 55k": lambda q, a, b: {
        "prompt": json.dumps([q]), "response_a": json.dumps([a]), "response_b": json.dumps([b]),
        "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
    },
    # allenai/reward-bench and allenai/reward-bench-2
    "RewardBench": lambda q, a, b: {
        "prompt": q, "chosen": a, "chosen_model": "x", "rejected": b, "subset": "s", "id": 1,
    },
    "RewardBench 2": lambda q, a, b: {
        "prompt": q, "chosen": [a], "rejected": [b, "c"], "num_correct": 1, "num_incorrect": 2, "total_completions": 3,
    },
    # Label Studio, template "Human preference collection for RLHF": the Pairwise tag, exported as JSON
    "Label Studio": label_studio,
    "capital letters": lambda q, a, b: {"Prompt": q, "Chosen": a, "Rejected": b},
}  # fmt: skip


def rows_of(name):
    return [ROWS[name](*one) for one in zip(ASKED, GOOD, BAD, strict=True)]


def read(tmp_path, rows, ending="jsonl", **options):
    return read_preferences(file(tmp_path, rows, ending), **options)


def plain(data):
    return sorted((row.prompt_text, row.chosen, row.rejected) for row in data.rows)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("name", ROWS)
def test_every_layout_is_read(tmp_path, name, ending):
    if ending == "csv":  # a spreadsheet has lists and objects as JSON
        rows = [
            {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in row.items()}
            for row in rows_of(name)
        ]
    else:
        rows = rows_of(name)
    data = read(tmp_path, rows, ending)
    assert plain(data) == sorted(zip(ASKED, GOOD, BAD, strict=True))
    assert not data.drops


def test_every_layout_has_a_row_here_and_stands_in_the_documentation_and_the_message(tmp_path):
    found = {read(tmp_path, rows_of(name)).layout for name in ROWS}
    assert {layout.name for layout in LAYOUTS} - {name.partition(":")[0] for name in found} <= {
        "conversation", "query", "context",
    }  # fmt: skip
    message = refused(lambda: read(tmp_path, [{"a": 1}]), "column 'chosen' missing; found: a", "--columns prompt=")
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert str(layout) in message
        assert layout.name in page


REFUSED = {
    "two prompts": (
        {"context": "Peru is long.", "question": "Why?", "chosen": "a", "rejected": "b"}, "question", "context",
    ),
    "another word": ({"user_prompt": "Why?", "chosen": "a b", "rejected": "a c"}, "user_prompt", "--columns prompt="),
    "passage": ({"prompt": "Why?", "passage": "Peru.", "chosen": "a", "rejected": "b"}, "`passage`"),
    "unknown prose": ({"Frage": "Was ist das?", "chosen": "a b", "rejected": "a c"}, "`Frage`", "prompt="),
    "turns elsewhere": ({"dialog": [said("Why?")], "prompt": "x", "chosen": "a", "rejected": "b"}, "`dialog`"),
    "two layouts": (
        {"prompt": "Why?", "chosen": "a", "rejected": "b", "response_a": "a", "response_b": "b", "winner": "model_a"},
        "TRL", "Arena", "none is guessed",
    ),
    "one answer": ({"prompt": "Why?", "completion": "a", "label": True}, "column 'chosen' missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_the_prompt_is_never_passed_over(tmp_path, name):
    row, *words = REFUSED[name]
    refused(lambda: read(tmp_path, [row, row]), *words)


def test_a_column_that_starts_late_is_counted(tmp_path):
    rows = [{"prompt": f"Question {i}?", "chosen": "a", "rejected": "b"} for i in range(80)]
    rows[70] |= {"system": "Be brief."}
    rows[75] |= {"context": "Peru is long."}
    data = read(tmp_path, rows)
    assert dict(data.drops) == {
        "`system` is in some rows only, not in the first 64": 1,
        "`context` is in some rows only, not in the first 64": 1,
    }
    rows[0] |= {"system": "", "context": ""}
    data = read(tmp_path, rows)
    assert dict(data.drops) == {"`context` says more than the prompt in `prompt`": 1}
    assert sum(not isinstance(row.prompt, str) for row in data.rows) == 1


def test_named_columns(tmp_path):
    rows = [
        {"d": {"ask": q}, "context": "c", "gut": a, "schlecht": b, "sys": "Brief."}
        for q, a, b in zip(ASKED, GOOD, BAD, strict=True)
    ]
    for ending in ("jsonl", "parquet"):
        data = read(tmp_path, rows, ending, columns="prompt=d.ask, chosen=gut,rejected=schlecht,system=sys")
        (row,) = [row for row in data.rows if row.chosen == GOOD[0]]
        assert row.prompt == (said("Brief.", "system"), said(ASKED[0]))
        assert "context" in data.notes()[0]
    shared = [{"note": "two words", "chosen": "The sky is blue", "rejected": "The sky is red"}]
    assert read(tmp_path, shared, columns="prompt=").rows[0].prompt == "The sky is"
    refused(
        lambda: read(tmp_path, rows, columns="prompt=ask,chosen=gut"), "prompt=ask: no such column; found: context, d,"
    )
    refused(lambda: read(tmp_path, rows, columns="frage=x"), "'frage=x' found", "prompt, chosen, rejected, system")
    refused(lambda: read(tmp_path, rows, columns="prompt"), "'prompt' found")


def test_rated_candidates(tmp_path):
    """The best against the worst, the first of equal ones; what cannot be ordered is counted."""
    rows = [
        {"instruction": "a?", "generations": ["p", "q", "r", "s"], "ratings": [3, 5, 5, 1]},
        {"instruction": "b?", "generations": ["p", "q"], "ratings": [4, 4]},
        {"instruction": "c?", "generations": ["p", "q"], "ratings": [4, None]},
        {"instruction": "d?", "generations": ["p", "q"], "ratings": [4]},
    ]
    data = read(tmp_path, rows)
    assert plain(data) == [("a?", "q", "s")]
    assert dict(data.drops) == {
        "a tie: neither answer is preferred": 1,
        "fewer than two candidates with a rating": 1,
        "`generations` and `ratings` are not lists of the same length": 1,
    }
    assert "more than two candidates: the best and the worst are used: 1 (line 1)" in " ".join(data.notes())


def test_verdicts_that_are_ties_or_none(tmp_path):
    base = {"prompt": "a?", "response_a": "p", "response_b": "q"}
    rows = [base | {"winner": word} for word in ("model_a", "tie", "tie (bothbad)", "nobody", None)]
    assert sorted(read(tmp_path, rows).drops.values()) == [1, 1, 2]
    rows = [{"context": "a?", "response1": "p", "response2": "q", "overall_preference": n} for n in (-3, 0, "x")]
    assert dict(read(tmp_path, rows).drops) == {
        "a tie: neither answer is preferred": 1,
        "`overall_preference` is not a number": 1,
    }
