"""The oracle: what it learned is what it loads, the better one is chosen, ties and drops are counted, votes by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stagealign.base.errors import BadData
from stagealign.data.records import Candidate, Pair, prompt_hash, read_dicts, read_rows, write_rows
from stagealign.grid import preferences
from stagealign.oracle import label
from stagealign.oracle import learned as oracle
from stagealign.oracle.open import ORACLES, row_of
from stagealign.scoring.contest import Contest
from stagealign.store.artifact import Work

GOOD, BAD = ("wonderful", "delightful", "moving", "superb"), ("dreadful", "tedious", "clumsy", "awful")


def ratings(path):
    rows = []
    for number in range(60):
        for sign, words in ((1, GOOD), (-1, BAD)):
            text = (
                f"A {words[number % 4]} film, {words[(number + 1) % 4]} and {words[(number + 2) % 4]} in part {number}."
            )
            split = ("oracle", "gold", "held_out")[number % 3]
            rows.append({"text": text, "rating": sign * (1 + number % 3), "split": split})
    path.mkdir()
    write_rows(path / "ratings.jsonl", rows)
    return rows


@pytest.fixture
def fitted(tmp_path):
    """Folder of a tf-idf oracle that learned 40 made-up ratings, and its facts."""
    rows = ratings(tmp_path / "ratings")
    out = tmp_path / "oracle"
    out.mkdir()
    facts = oracle.fit(Work({"alpha": 1.0}, {"ratings": tmp_path / "ratings"}, out, tmp_path))
    return out, facts, rows


def test_what_was_learned_is_what_is_loaded(fitted):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    out, facts, rows = fitted
    learn = [row for row in rows if row["split"] == "oracle"]
    assert (facts["learned_from"], facts["held_out"]) == (40, 40)
    assert facts["spearman"] > 0.7
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    ridge = Ridge(alpha=1.0).fit(
        features.fit_transform([row["text"] for row in learn]), [row["rating"] for row in learn]
    )
    texts = ["", "Nothing known.", "dreadful dreadful dreadful", *(row["text"] for row in rows)]
    assert oracle.tfidf(out, texts) == pytest.approx(ridge.predict(features.transform(texts)), abs=1e-12)
    assert oracle.tfidf(out, ["a superb film"])[0] > oracle.tfidf(out, ["an awful film"])[0]
    assert {path.suffix for path in out.iterdir()} == {".json", ".npz"}, "nothing that runs code on loading"


def test_spearman_by_hand():
    assert oracle.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == 0.8
    assert oracle.spearman([1, 2, 3], [3, 2, 1]) == -1


def test_letters_is_the_share_of_letters():
    assert oracle.letters(Path(), ["abc", "a1 2", "", "éé!!"]) == [1.0, 0.25, 0.0, 0.5]


def candidates(*texts, source="off", truncated=()):
    """Two candidates a prompt `p0`, `p1`, ..."""
    return [
        Candidate(f"p{number // 2}", text, source, number % 2, number in truncated) for number, text in enumerate(texts)
    ]


@pytest.fixture
def rank(tmp_path):
    """Ranks candidates by their share of letters; pairs and facts."""

    def run(rows, sign=1):
        folder, out = tmp_path / "candidates", tmp_path / "pairs"
        for one in (folder, out):
            one.mkdir(exist_ok=True)
        write_rows(folder / "candidates.jsonl", rows)
        inputs = {"candidates": folder, "oracle": tmp_path}
        facts = label.rank(Work({"oracle": "letters", "sign": sign}, inputs, out, tmp_path))
        return read_rows(out / "pairs.jsonl", Pair), facts

    return run


def test_the_better_one_is_chosen(rank):
    rows = candidates("aaaa", "a111", "a111", "aaaa", source="on", truncated={2, 3})
    pairs, facts = rank(rows)
    assert pairs == [
        Pair("p0", "aaaa", "a111", "on", 0.75, False, False),
        Pair("p1", "aaaa", "a111", "on", 0.75, True, True),
    ]
    assert facts == {"pairs": 2, "ties": 0, "margin": 0.75, "truncated": 2, "drops": {}}
    wished_otherwise, _ = rank(rows, sign=-1)
    assert [(pair.chosen, pair.margin) for pair in wished_otherwise] == [("a111", 0.75)] * 2


def test_a_tie_goes_to_the_second(rank):
    pairs, facts = rank(candidates("abcd", "wxyz", "aaaa", "a111", truncated={0}))
    assert pairs[0] == Pair("p0", "wxyz", "abcd", "off", 0.0, False, True)
    assert (facts["ties"], facts["margin"], facts["truncated"]) == (1, 0.375, 1)


def test_what_cannot_teach_is_dropped_and_counted(rank):
    pairs, facts = rank(candidates("", "aa", "aa", "aa", "", "", "aa", "a1"))
    assert [pair.prompt for pair in pairs] == ["p3"]
    assert facts["drops"] == {"empty completion": 2, "chosen equals rejected": 1}


@pytest.mark.parametrize("rows", [candidates("", "a", "b", "b"), []], ids=["all dropped", "no candidates"])
def test_no_usable_pair_is_an_error_that_says_why(rows, rank):
    with pytest.raises(BadData, match="no usable pair among") as caught:
        rank(rows)
    if rows:
        assert "1 empty completion, 1 chosen equals rejected" in str(caught.value)


def test_the_order_of_candidates_of_other_prompts_does_not_matter(rank):
    rows = candidates("aaaa", "a111", "bbb1", "bbbb")
    pairs, _ = rank(rows)
    shuffled, _ = rank([rows[2], rows[0], rows[3], rows[1]])
    assert sorted(pairs, key=lambda pair: pair.prompt) == sorted(shuffled, key=lambda pair: pair.prompt)


def test_votes_by_hand(tmp_path):
    """Prompt a: on 1.0 and 0.5 against off 0.5 and 0.0; prompt b: on 0 and 0 against off 1 and 0."""
    on = [
        Candidate("a", "xx", "on", 0),
        Candidate("b", "1", "on", 0),
        Candidate("a", "x1", "on", 1),
        Candidate("b", "2", "on", 1),
    ]
    off = [
        Candidate("b", "x", "off", 0),
        Candidate("b", "3", "off", 1),
        Candidate("a", "y2", "off", 0),
        Candidate("a", "4", "off", 1),
    ]
    for name, rows in (("completions", on), ("static", off)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "candidates.jsonl", rows)
    inputs = {"completions": tmp_path / "completions", "static": tmp_path / "static", "oracle": tmp_path}
    for sign, votes in ((1, [(3.5, 0.5, 1, 0), (1.0, 3.0, 0, 1)]), (-1, [(0.5, 3.5, 0, 1), (3.0, 1.0, 0.5, 0.5)])):
        (out := tmp_path / f"votes{sign}").mkdir()
        assert label.votes(Work({"oracle": "letters", "sign": sign}, inputs, out, tmp_path)) == {"prompts": 2}
        rows = list(read_dicts(out / "votes.jsonl"))
        assert [row["prompt"] for row in rows] == [prompt_hash("a"), prompt_hash("b")]
        assert [(row["on"], row["off"], row["top_on"], row["top_off"]) for row in rows] == votes
        assert [row["ties"] for row in rows] == [1, 2]


def test_scores_are_signed(tmp_path):
    for sign in (1, -1):
        work = Work({"oracle": "letters", "sign": sign}, {"oracle": tmp_path}, tmp_path, tmp_path)
        with label.labeller_of(work) as labeller:
            (verdict,) = labeller.verdicts([Contest("p", ("aa",), ("a1",))])
        assert np.allclose((*verdict.on, *verdict.off), [sign * 1.0, sign * 0.5])


def test_candidates_are_joined_by_prompt_source_and_index(rank):
    rows = candidates("aaaa", "a111")
    with pytest.raises(BadData, match=r"candidates\.jsonl: CandidateKey\(.*index=0\) comes twice"):
        rank([rows[0], replace(rows[1], index=0)])


def test_the_grid_and_the_meter_share_one_catalogue():
    assert set(ORACLES) < set(preferences.ORACLES)
    for key, row in preferences.ORACLES.items():
        opened = row_of(key)
        assert opened is not None, key
        assert (key in ORACLES) != bool(row.scorer), key
        assert row.named == (opened.needs_name and bool(opened.usage)), key


def test_the_saved_vocabulary_is_readable(fitted):
    words = json.loads((fitted[0] / "vocabulary.json").read_text(encoding="utf-8"))
    assert sorted(words.values()) == list(range(len(words)))
    assert "superb" in words
