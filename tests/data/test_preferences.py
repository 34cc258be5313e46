"""PreferenceRow data: every shape and format, choice by seed, memory, and bad files named with the fix."""

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest
from factory_files import FORMATS, file, refused

from stagealign.data.formats import CHUNK
from stagealign.data.preferences import PreferenceRow, read_preferences

SHARED = Path(os.environ.get("STAGEALIGN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SKY = {"role": "user", "content": "What color is the sky?"}
PLAIN = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": 'A "quoted",\nsecond line', "chosen": " é漢字🙂", "rejected": " no"},
]


def said(content, role="assistant"):
    return {"role": role, "content": content}


def plain(data):
    """Rows as plain values, sorted."""
    key = [(p.prompt if isinstance(p.prompt, str) else [*map(dict, p.prompt)], p.chosen, p.rejected) for p in data.rows]
    return sorted(key, key=str)


SHAPES = {
    "explicit, plain": (PLAIN, [(row["prompt"], row["chosen"], row["rejected"]) for row in PLAIN]),
    "implicit, plain": (
        [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
        [("The sky is", " blue.", " green.")],
    ),
    "implicit, inside a word": (
        [{"chosen": "The sky is blue", "rejected": "The sky is black"}],
        [("The sky is", " blue", " black")],
    ),
    "implicit, one longer": (
        [{"chosen": "Q: sky?\nblue", "rejected": "Q: sky?\nblue today"}],
        [("Q: sky?\n", "blue", "blue today")],
    ),
    "implicit, turns": (
        [
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello you", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello me"},
            {"chosen": "\n\nHuman: Ho\n\nAssistant: same", "rejected": "\n\nHuman: Ho\n\nAssistant: same"},
        ],
        [
            ("\n\nHuman: Hi\n\nAssistant:", " Hello you", " Hello me"),
            ("\n\nHuman: Ho\n\nAssistant:", " same", " same"),
        ],
    ),
    "explicit, turns repeated": (
        [
            {
                "prompt": "\n\nHuman: Hi\n\nAssistant:",
                "chosen": "\n\nHuman: Hi\n\nAssistant: a",
                "rejected": "\n\nHuman: Hi\n\nAssistant: b",
            }
        ],
        [("\n\nHuman: Hi\n\nAssistant:", " a", " b")],
    ),
    "explicit, conversations": (
        [{"prompt": [SKY], "chosen": [said("Blue.")], "rejected": [said("Green.")]}],
        [([SKY], "Blue.", "Green.")],
    ),
    "implicit, conversations": (
        [{"chosen": [SKY, said("Blue.")], "rejected": [SKY, said("Green.")]}],
        [([SKY], "Blue.", "Green.")],
    ),
    "implicit, several turns": (
        [
            {
                "chosen": [said("Be brief.", "system"), SKY, said("Which?"), said("Ours.", "user"), said("Blue.")],
                "rejected": [said("Be brief.", "system"), SKY, said("Which?"), said("Ours.", "user"), said("Blue.")],
            }
        ],
        [([said("Be brief.", "system"), SKY, said("Which?"), said("Ours.", "user")], "Blue.", "Blue.")],
    ),
    "prompt in text beside whole conversations": (
        [{"prompt": SKY["content"], "chosen": [SKY, said("Blue.")], "rejected": [SKY, said("Green.")]}],
        [([SKY], "Blue.", "Green.")],
    ),
    "prompt in text, completions as messages": (
        [{"prompt": SKY["content"], "chosen": [said("Blue.")], "rejected": [said("Green.")]}],
        [([SKY], "Blue.", "Green.")],
    ),
    "prompt as messages, completions in text": (
        [{"prompt": [SKY], "chosen": "Blue.", "rejected": "Green."}],
        [([SKY], "Blue.", "Green.")],
    ),
    "prompt repeated in the conversations": (
        [{"prompt": [SKY], "chosen": [SKY, said("Blue.")], "rejected": [SKY, said("Green.")]}],
        [([SKY], "Blue.", "Green.")],
    ),
    "from and value": (
        [
            {
                "chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}],
                "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "b"}],
            }
        ],
        [([said("Hi", "user")], "a", "b")],
    ),
}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_format(tmp_path, shape, ending):
    rows, expected = SHAPES[shape]
    data = read_preferences(file(tmp_path, rows, ending))
    assert plain(data) == sorted(expected, key=str)
    assert (data.given, data.repeated, data.not_chosen, data.drops.total()) == (len(rows), 0, 0, 0)
    assert data.ties == sum(chosen == rejected for _, chosen, rejected in expected)


def test_content_in_parts(tmp_path):
    parts = [{"type": "text", "text": "What color "}, {"type": "text", "text": "is the sky?"}]
    row = {"chosen": [said(parts, "user"), said("a")], "rejected": [said(parts, "user"), said("b")]}
    assert plain(read_preferences(file(tmp_path, [row]))) == [([SKY], "a", "b")]


@pytest.mark.slow  # TRL imports torch
@pytest.mark.parametrize("shape", ["explicit, plain", "implicit, plain", "explicit, conversations",
                                   "implicit, conversations", "implicit, several turns"])  # fmt: skip
def test_as_trl_where_trl_is_sound(tmp_path, shape):
    trl = pytest.importorskip("trl.data_utils", reason="TRL is not installed")
    for row in SHAPES[shape][0]:
        (ours,) = read_preferences(file(tmp_path, [row])).rows
        theirs = trl.maybe_extract_prompt(dict(row))
        texts = [
            side if isinstance(side, str) else side[-1]["content"] for side in (theirs["chosen"], theirs["rejected"])
        ]
        assert [ours.chosen, ours.rejected] == texts
        assert (ours.prompt if isinstance(ours.prompt, str) else list(ours.prompt)) == theirs["prompt"]


def test_prompt_for_a_template_and_as_text():
    assert PreferenceRow("The sky is", "a", "b").messages is None
    turns = PreferenceRow("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go on\n\nAssistant:", "a", "b")
    assert turns.messages == (said("Hi", "user"), said("Yes?"), said("Go on", "user"))
    assert turns.prompt_text == turns.prompt
    system = said("", "system")
    assert PreferenceRow((system, SKY), "a", "b").prompt_text == SKY["content"]
    assert PreferenceRow((SKY, said("Blue")), "a", "b").prompt_text == f"user: {SKY['content']}\n\nassistant: Blue"


def test_hh_rlhf(tmp_path):
    path = SHARED / "data" / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    if not path.is_file():
        pytest.skip("shared data hh_rlhf is not here; set STAGEALIGN_SHARED to the folder that has data/hh_rlhf")
    data = read_preferences(str(path))
    assert data.given == 2312
    assert data.repeated == 2
    assert data.drops == {"`chosen` and `rejected` part before their last turn": 5, "empty `chosen`": 4}
    assert len(data.rows) == 2312 - 9 - 2
    assert all(row.prompt.endswith("\n\nAssistant:") and row.messages[-1]["role"] == "user" for row in data.rows)
    some = read_preferences(str(path), prompts=200)
    assert some.rows == data.rows[:200]
    assert some.given == 200 + some.repeated + some.not_chosen + 9


def test_rows_are_counted(tmp_path):
    rows = [
        *PLAIN,
        {"prompt": "The sky is", "chosen": " red.", "rejected": " grey."},  # repeated
        {"prompt": "  ", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": None},
        {"prompt": "p", "chosen": 3, "rejected": "b"},
        {"prompt": "p", "chosen": "a"},
        {"chosen": "a b", "rejected": "a c"},
        {"prompt": "p", "chosen": "\ud800", "rejected": "b"},
        {"prompt": "p", "chosen": [], "rejected": []},
        {"prompt": "p", "chosen": [SKY], "rejected": [SKY]},
        {"prompt": "p", "chosen": [SKY, said("a")], "rejected": "a"},
        {"prompt": "p", "chosen": [["a"]], "rejected": [["b"]]},
        {"prompt": "p", "chosen": [SKY, said("a")], "rejected": [said("Other?", "user"), said("b")]},
        {"prompt": "tie", "chosen": "a", "rejected": "a"},
        *[{"prompt": "", "chosen": "a", "rejected": "b"}] * 3,
    ]
    data = read_preferences(file(tmp_path, rows))
    assert (data.given, len(data.rows), data.repeated, data.ties) == (19, 3, 1, 1)
    assert dict(data.drops) == {
        "empty `prompt`": 4,
        "empty `chosen`": 2,
        "`rejected` is null": 1,
        "`chosen` is a number, not text or a list of messages": 1,
        "no `rejected`": 1,
        "no `prompt`": 1,
        "`chosen` has half a character (a lone surrogate)": 1,
        "the last turn of `chosen` or `rejected` is not the assistant's": 1,
        "one of `chosen` and `rejected` is text, the other a conversation": 1,
        "`chosen` is a list, but not of messages with the text of `role` and `content`": 1,
        "`chosen` and `rejected` part before their last turn": 1,
    }
    assert data.tally.examples["empty `prompt`"] == [4, 17, 18]
    assert next(row for row in data.rows if row.prompt == "The sky is").chosen == " blue."
    notes = " ".join(data.notes())
    assert "1 rows repeat a prompt" in notes
    assert "empty `prompt`: 4 (lines 4, 17, 18, ...)" in notes
    assert "5 prompts asked for, 3 found" in " ".join(read_preferences(file(tmp_path, rows), prompts=5).notes())


def numbered(count):
    return [{"prompt": f"prompt {i % count}", "chosen": f"a{i}", "rejected": "b"} for i in range(count * 2)]


def test_choice_is_by_seed_and_not_by_order_or_format(tmp_path):
    rows = numbered(100)
    data = read_preferences(file(tmp_path, rows), prompts=10, seed=3)
    assert (len(data.rows), data.repeated, data.not_chosen) == (10, 10, 180)
    more = read_preferences(file(tmp_path, rows, "csv"), prompts=30, seed=3)
    assert more.rows[:10] == data.rows
    backwards = read_preferences(file(tmp_path, rows[99::-1], "parquet"), prompts=10, seed=3)
    assert backwards.rows == data.rows
    other = read_preferences(file(tmp_path, rows), prompts=10, seed=4)
    assert [row.prompt for row in other.rows] != [row.prompt for row in data.rows]
    places = [int(row.prompt.split()[1]) for row in read_preferences(file(tmp_path, rows)).rows]
    assert sorted(places) == list(range(100))
    assert abs(sum(i * place for i, place in enumerate(places)) / 100 - 49.5**2) < 400  # a shuffle: sd is 84


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_memory_does_not_grow_with_the_rows(tmp_path, ending):
    def peak(count):
        rows = ({"prompt": f"prompt {i} {'x' * 40}", "chosen": "a", "rejected": "b"} for i in range(count))
        path = file(tmp_path, list(rows), ending)
        tracemalloc.start()
        try:
            data = read_preferences(path, prompts=500)
            return tracemalloc.get_traced_memory()[1], data
        finally:
            tracemalloc.stop()

    small, _ = peak(2_000)
    large, data = peak(50_000 if ending == "jsonl" else 8_000)
    assert (len(data.rows), data.given) == (500, 50_000 if ending == "jsonl" else 8_000)
    assert large < small * 1.5 + 300_000 + (CHUNK * 8 if ending == "json" else 0)


def test_long_rows_in_a_list_cross_the_pieces_that_are_read(tmp_path):
    rows = [{"prompt": f"{i} {'é' * (CHUNK // 3 * i)}", "chosen": '\\"a🙂', "rejected": "b"} for i in range(8)]
    assert len(read_preferences(file(tmp_path, rows, "json")).rows) == 8
    assert len(read_preferences(file(tmp_path, rows, "csv")).rows) == 8


BAD = {
    "empty.jsonl": (b"", "no rows found"),
    "blank.json": (b"\n \n", "no rows found"),
    "list.json": (b"[]", "no rows found"),
    "header.csv": (b"prompt,chosen,rejected\n", "no rows found"),
    "column.jsonl": (b'{"chosen": "a", "reject": "b"}', "column 'rejected' missing; found: chosen, reject"),
    "column.csv": (b"prompt,answer\np,a\n", "column 'chosen' missing; found: prompt, answer"),
    "type.jsonl": (b'{"chosen": 1, "rejected": 2}', "none of 1 lines can be used; `chosen` is a number, not text"),
    "latin.jsonl": ('{"chosen": "a é", "rejected": "a b"}'.encode("latin-1"), "line 1: not UTF-8"),
    "latin.csv": ("chosen,rejected\nx a,x é\n".encode("latin-1"), "line 2: not UTF-8"),
    "latin.json": ('[{"chosen": "a é", "rejected": "a b"}]'.encode("latin-1"), "not UTF-8"),
    "wide.csv": ("chosen,rejected\nx a,x b\n".encode("utf-16"), "line 1: not UTF-8"),
    "cut.jsonl": (b'{"chosen": "a b", "rejected": "a c"}\n{"chosen": "a', "line 2: not JSON"),
    "number.jsonl": (b"3\n", "line 1: a number found; an object"),
    "digits.jsonl": (b'{"chosen": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
    "deep.jsonl": (b"[" * 200_000, "line 1: not JSON (nested too deeply)"),
    "cut.json": (b'[{"chosen": "a b", "rejected": "a c"}', "ends early, after row 1"),
    "cut2.json": (b'[{"chosen": "a b", "rejec', "row 1: not JSON"),
    "text.json": (b"hello", "starts with 'h'"),
    "comma.json": (b'[{"chosen": "a b", "rejected": "a c"} {}]', "after row 1: '{' found"),
    "more.json": (b'[{"chosen": "a b", "rejected": "a c"}] 3', "more text after the end"),
    "numbers.json": (b"[1, 2]", "row 1: starts with '1'"),
    "columns.json": (b'{"chosen": ["a b", "a d"], "rejected": ["a c"]}', "`chosen` is a list of several texts"),
    "quote.csv": (b'chosen,rejected\n"x a,x b\n', "not CSV"),
    "cells.csv": (b"chosen,rejected\nx a,x b,c\n", "not as many cells as the header"),
    "twice.csv": (b"chosen,chosen\na,b\n", "column 'chosen' found twice"),
    "python.csv": (b"chosen,rejected\n\"[{'role': 'user'}]\",b\n", "`chosen` is a list, but not of messages"),
    "early.jsonl.gz": (gzip.compress(b'{"chosen": "a b", "rejected": "a c"}\n' * 99)[:-9], "gzip file ends early"),
    "not.jsonl.gz": (b'{"chosen": "a b", "rejected": "a c"}\n', "not a sound gzip file"),
    "not.parquet": (b"PAR1 no", "not a sound parquet file"),
    "empty.parquet": (b"", "not a sound parquet file"),
    "data.txt": (b"x", "unknown ending '.txt'"),
    "data.pkl": (b"\x80\x04", "unknown ending '.pkl'"),
    "data": (b"x", "unknown ending ''"),
    "nothing.csv": (b"prompt,chosen,rejected\n,a,b\nx,,b\n", "none of 2 rows can be used; empty `prompt`: 1 (row 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_fix(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    refused(lambda: read_preferences(str(tmp_path / name)), str(tmp_path / name), words)


def test_bad_parquet(tmp_path):
    path = Path(file(tmp_path, [{"chosen": f"x {i}", "rejected": "x y"} for i in range(500)], "parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_preferences(str(path)), "not a sound parquet file")
    refused(
        lambda: read_preferences(file(tmp_path, [{"chosen": 1, "other": 2}], "parquet")), "'rejected' missing; found"
    )
    refused(lambda: read_preferences(file(tmp_path, [{"chosen": 1, "rejected": 2}], "parquet")), "`chosen` is a number")
    refused(lambda: read_preferences(file(tmp_path, [{"a": 1}], "parquet")), "'chosen' missing; found: a")


def test_bad_arguments(tmp_path):
    path = file(tmp_path, PLAIN)
    (tmp_path / "empty").mkdir()
    refused(lambda: read_preferences(str(tmp_path / "empty")), "a folder found")
    refused(lambda: read_preferences(str(tmp_path / "none.jsonl")), "no such file")
    refused(lambda: read_preferences(str(tmp_path / "none.zip")), "unknown ending '.zip'")
    refused(lambda: read_preferences(str(tmp_path / "none")), "neither a file nor a hub data set")
    refused(lambda: read_preferences(""), "no name")
    refused(lambda: read_preferences("x" * 5000), "not a file name")
    refused(lambda: read_preferences(path, prompts=0), "prompts 0")
    refused(lambda: read_preferences(path, split="test"), "a file has no split 'test'")


@pytest.fixture
def hub(monkeypatch):
    """Stand-in for the hub that records what it was asked for."""
    import datasets

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        one = datasets.Dataset.from_list(PLAIN).to_iterable_dataset()
        if args[0] == "gone":
            raise ConnectionError("Couldn't reach 'gone' on the Hub\nsecond line")
        if options["split"] or args[0] == "one":
            return one if options["split"] else datasets.IterableDatasetDict({"train": one})
        return datasets.IterableDatasetDict({"train_prefs": one, "test_prefs": one})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_data_set(hub):
    data = read_preferences("org/name-v1.5:default@refs/pr/1", split="test_prefs")
    assert plain(data) == sorted((row["prompt"], row["chosen"], row["rejected"]) for row in PLAIN)
    assert hub == [(("org/name-v1.5", "default"), {"revision": "refs/pr/1", "split": "test_prefs", "streaming": True})]
    assert len(read_preferences("one").rows) == 2
    refused(lambda: read_preferences("org/name"), "splits train_prefs, test_prefs found", "--split")
    refused(lambda: read_preferences("gone"), "cannot be read from the hub (Couldn't reach 'gone' on the Hub)")
