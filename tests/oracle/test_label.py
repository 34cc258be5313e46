"""Labels of the grid: bytes of each oracle's files, pinned from before one pair of builders wrote them all."""

import hashlib
import json

import numpy as np
import pytest

from stagealign.base.kind import code_at
from stagealign.data.records import Candidate, write_rows
from stagealign.grid.preferences import ORACLES
from stagealign.oracle import pairrm
from stagealign.store.artifact import Work
from tests.oracle.test_pairrm import build

WORDS = {"good": 0, "bad": 1, "film": 2, "the plot": 3, "plot": 4, "odd": 5}
TEXTS = {
    "the film": ("good film", "bad film"),
    "the plot": ("odd", "the plot was odd and long"),
    "good fun": ("film 1", "film 1"),
    "bad fun": ("", "good"),
    "the odd film": ("good good good plot", "bad"),
    "long plot": ("abcd", "wxyz"),
}
STATIC = {prompt: (f"{second} film", first or "bad") for prompt, (first, second) in TEXTS.items()}


class Reckoned(pairrm.PairRMOracle):
    """PairRM whose logits follow from the token ids in whole numbers, so that every machine has the same."""

    def _run(self, rows, together=1):
        return [sum(place * one for place, one in enumerate(row, 1)) % 997 / 64 - 7 for row in rows]


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Runs a kind of an oracle's row on the made-up candidates; bytes of what it writes, and its facts."""
    real = build()
    monkeypatch.setattr(pairrm, "load", lambda name: Reckoned(real.model, real.tokenizer, "made-up"))
    folders = {name: tmp_path / name for name in ("candidates", "static", "oracle", "out")}
    for folder in folders.values():
        folder.mkdir()
    (folders["oracle"] / "vocabulary.json").write_text(json.dumps(WORDS))
    coefficients = np.array([1.5, -2.0, 0.25, 0.5, -0.75, -1.0])
    np.savez(folders["oracle"] / "ridge.npz", idf=np.ones(len(WORDS)), coefficients=coefficients, intercept=0.5)
    for name, texts, source in (("candidates", TEXTS, "on"), ("static", STATIC, "off")):
        rows = [
            Candidate(prompt, text, source, index, truncated=text.endswith("long"))
            for prompt, pair in texts.items()
            for index, text in enumerate(pair)
        ]
        write_rows(folders[name] / "candidates.jsonl", rows)

    def run(key, kind, sign, **params):
        place = getattr(ORACLES[key], kind).function
        inputs = {"candidates": folders["candidates"], "completions": folders["candidates"]}
        inputs |= {"static": folders["static"], "oracle": folders["oracle"]}
        work = Work({"oracle": key, "sign": sign, **params}, inputs, folders["out"], tmp_path)
        facts = code_at(place)(work)
        (path,) = folders["out"].glob("*.jsonl")
        return path.name, path.read_bytes(), facts

    return run


PAIRS = {"pairs": 4, "ties": 1, "truncated": 1, "drops": {"chosen equals rejected": 1, "empty completion": 1}}


@pytest.mark.parametrize(
    ("key", "kind", "sign", "digest", "facts"),
    [
        ("letters", "rank", 1, "364c5be7f6afd23c", PAIRS | {"margin": 0.0929}),
        ("letters", "rank", -1, "544c70aad12361c0", PAIRS | {"margin": 0.0929}),
        ("letters", "votes", 1, "667d13029c645da4", {"prompts": 6}),
        ("letters", "votes", -1, "1a8fc47c3c835100", {"prompts": 6}),
        ("tfidf", "rank", 1, "66c4342a36a6e71d", PAIRS | {"margin": 1.4462}),
        ("tfidf", "rank", -1, "92071b100f2c65cc", PAIRS | {"margin": 1.4462}),
        ("tfidf", "votes", 1, "aa53b68db1a042d6", {"prompts": 6}),
        ("tfidf", "votes", -1, "441cee11635925d3", {"prompts": 6}),
        ("pairrm", "rank", 1, "6f8cacf13e05a084", PAIRS | {"ties": 0, "margin": 5.0938, "truncated_for_oracle": 0}),
        ("pairrm", "votes", 1, "4902af18851f2161", {"prompts": 6, "truncated_for_oracle": 0}),
    ],
)
def test_files_and_facts_are_those_of_the_first_builders(labelled, key, kind, sign, digest, facts):
    name, found, told = labelled(key, kind, sign)
    assert name == {"rank": "pairs.jsonl", "votes": "votes.jsonl"}[kind]
    assert hashlib.sha256(found).hexdigest()[:16] == digest, found.decode()
    assert told == facts
