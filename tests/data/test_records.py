"""Rows go to a file and come back; a bad line is named; nothing is dropped without a reason."""

import json

import pytest

from stagealign.base.errors import BadData
from stagealign.data.records import (
    Candidate,
    Drops,
    Pair,
    Prompt,
    asked_prompts,
    by_prompt,
    prompt_hash,
    read_dicts,
    read_rows,
    write_rows,
)

ROWS = [
    Prompt('Say “é”\n\u2028 and\t"quotes"', "train", "a\\b"),
    Candidate("p", "", "on", 1, True, 3, (1, 2, 3), -1.25),
    Candidate("p", "human text", "off", 0),
    Pair("p", "good", "bad", "off", 0.5, False, True),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_come_back_as_they_were(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write_rows(path, [row, row]) == 2
    assert read_rows(path, type(row)) == [row, row]
    assert len(path.read_text(encoding="ascii").splitlines()) == 2


def test_an_empty_file_is_no_rows(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    assert read_rows(tmp_path / "rows.jsonl", Prompt) == []


GOOD = json.dumps({"text": "a", "split": "train"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "a', "not JSON"),
        (b'{"text": "\xff", "split": "train"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\n", "not JSON"),
        (b"[1, 2]", "list found"),
        (b'"text"', "str found"),
        (b'{"text": "a"}', "columns text do not fit Prompt (text, split, title)"),
        (b'{"text": "a", "split": "train", "colour": 1}', "columns text, split, colour do not fit Prompt"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(line, words, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(BadData) as caught:
        read_rows(path, Prompt)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert words in str(caught.value)


def test_dicts_are_read_one_by_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"nonsense\n")
    rows = read_dicts(path)
    assert next(rows) == {"text": "a", "split": "train"}
    with pytest.raises(BadData, match="line 2"):
        next(rows)


def test_prompts_are_joined_by_hash():
    assert Prompt("a", "train").hash == prompt_hash("a") == "ca978112ca1bbdca"
    assert prompt_hash("a") != prompt_hash("a ")
    assert prompt_hash("\ud800") != prompt_hash("?"), "half a character is a text too"
    rows = [Candidate("b", "1", "off", 0), Candidate("a", "2", "off", 0), Candidate("b", "3", "off", 1)]
    assert by_prompt(rows) == {"b": [rows[0], rows[2]], "a": [rows[1]]}
    assert list(by_prompt(rows)) == ["b", "a"]


def test_drops_add_up():
    drops = Drops()
    drops["empty completion"] += 2
    drops["repeated"] += 1
    drops.check(given=10, used=7)
    with pytest.raises(AssertionError, match="10 rows in, 8 used, 3 dropped"):
        drops.check(given=10, used=8)


def test_parts_of_prompts_are_all_of_them_in_order(tmp_path):
    rows = [Prompt(f"text {n % 7}", "train") for n in range(10)] + [Prompt("other", "test")]
    write_rows(tmp_path / "prompts.jsonl", rows)
    every = asked_prompts(tmp_path, ["train"])
    assert len(every) == 7
    for count in (1, 2, 3, 7):
        parts = [asked_prompts(tmp_path, ["train"], (k, count)) for k in range(1, count + 1)]
        assert [one for part in parts for one in part] == every
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(BadData, match="7 prompts cannot be cut into the scale's 8 parts"):
        [asked_prompts(tmp_path, ["train"], (k, 8)) for k in range(1, 9)]
