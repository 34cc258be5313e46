"""Labels of the grid: bytes of each oracle's files, pinned from before one pair of builders wrote them all."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from factory_pairrm import build
from transformers import LlamaConfig, LlamaForSequenceClassification

from stagealign.base.errors import BadData, BadNumbers, BadSpec, StagealignError
from stagealign.base.kind import code_at
from stagealign.data.records import Candidate, Pair, read_dicts, read_rows, write_rows
from stagealign.data.tables import digest_of
from stagealign.grid import registry
from stagealign.grid.preferences import ORACLES, Preference
from stagealign.oracle import label, pairrm
from stagealign.oracle.open import open_oracle, plain_contest
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.price import estimate
from stagealign.store.artifact import Context, Work

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
        ("pairrm", "votes", 1, "42596ece07e9478e", {"prompts": 6, "truncated_for_oracle": 0}),
    ],
)
def test_files_and_facts_are_those_of_the_first_builders(labelled, key, kind, sign, digest, facts):
    name, found, told = labelled(key, kind, sign)
    assert name == {"rank": "pairs.jsonl", "votes": "votes.jsonl"}[kind]
    assert hashlib.sha256(found).hexdigest()[:16] == digest, found.decode()
    assert told == facts


PAIR = {"good red": "fair green", "bad blue": "good sky"}
"""First and second candidate of a prompt; the judge of `test_judge` prefers good to fair to bad."""


@pytest.fixture
def asked(tmp_path):
    """Runs the three kinds of a named oracle on two prompts; rows of pairs and votes, and facts of each kind."""
    texts = {f"p{place}": pair for place, pair in enumerate(PAIR.items())}
    for name, source in (("candidates", "on"), ("static", "off")):
        rows = [Candidate(prompt, text, source, i) for prompt, pair in texts.items() for i, text in enumerate(pair)]
        if source == "off":
            rows = [replace(row, completion="fair film" if row.index else "fair grey") for row in rows]
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "candidates.jsonl", rows)

    def run(oracle, context=Context(), sign=1, **params):  # noqa: B008, it is frozen
        kinds = ORACLES[oracle.partition(":")[0]]
        inputs = {"candidates": tmp_path / "candidates", "completions": tmp_path / "candidates"}
        inputs |= {"static": tmp_path / "static", "oracle": tmp_path / "oracle"}
        facts = {}
        for name in ("ready", "rank", "votes"):
            out = tmp_path / ("oracle" if name == "ready" else name)
            out.mkdir(exist_ok=True)
            given = {"oracle": oracle, **params} if name == "ready" else {"oracle": oracle, "sign": sign}
            facts[name] = code_at(getattr(kinds, name).function)(Work(given, inputs, out, tmp_path, context))
        pairs = read_rows(tmp_path / "rank" / "pairs.jsonl", Pair)
        return pairs, list(read_dicts(tmp_path / "votes" / "votes.jsonl")), facts

    return run


@pytest.mark.parametrize(("sign", "chosen"), [(1, ["good red", "good sky"]), (-1, ["fair green", "bad blue"])])
def test_a_judge_labels_a_round(asked, server, sign, chosen):
    """On p0, good and fair each meet two fair ones: 1 + 1 and a tie each; on p1, bad and good: 0 and 2 of 4."""
    pairs, votes, facts = asked("judge:judge", Context(judge_url=server.url), sign)
    assert [(pair.chosen, pair.margin) for pair in pairs] == [(text, 1.0) for text in chosen]
    ours = [(row["on"], row["off"], row["ties"]) for row in votes]
    assert ours == ([(3.0, 1.0, 2), (2.0, 2.0, 0)] if sign == 1 else [(1.0, 3.0, 2), (2.0, 2.0, 0)])
    said = {"kind": "judge", "version": 3, "model": "judge", "served": "judge-1", "style": "text"}
    oracles = [facts[name]["oracle"] for name in ("ready", "rank", "votes")]
    assert oracles == [said | {"weights": oracles[0]["weights"]}] * 3
    assert (facts["rank"]["compared"], facts["votes"]["compared"]) == (2, 8)


def test_labels_of_two_judges_are_never_mixed(asked, server, tmp_path):
    context = Context(judge_url=server.url)
    asked("judge:judge", context)
    work = Work({"oracle": "judge:judge", "sign": 1}, {"oracle": tmp_path / "oracle"}, tmp_path, tmp_path, context)
    for changed, message in (("says", "never mixed"), ("name", r"served': 'judge-2'.*was.*'judge-1'.*never mixed")):
        setattr(server, changed, "judge-2")
        with pytest.raises(StagealignError, match=message):
            label.rank(replace(work, inputs={**work.inputs, "candidates": tmp_path / "candidates"}))


def test_verdicts_that_a_stopped_build_was_given_are_not_asked_for_again(asked, server):
    context = Context(judge_url=server.url)
    asked("judge:judge", context)
    before = len(server.seen)
    asked("judge:judge", context)
    assert len(server.seen) == before + 3 * 2, "each of three builds asks its first questions, and no other"


def test_a_judge_without_a_server_is_an_error(asked):
    with pytest.raises(StagealignError, match="oracle 'judge:judge': no server is named; give the URL"):
        asked("judge:judge")


def test_recorded_judgments_label_a_round(asked, tmp_path):
    file = tmp_path / "judged.jsonl"
    rows = [(f"p{i}", a, b, "a") for i, (a, b) in enumerate(PAIR.items())]
    rows += [(f"p{i}", text, static, "b") for i, pair in enumerate(PAIR.items()) for text in pair
             for static in ("fair grey", "fair film")]  # fmt: skip
    names = ("prompt", "a", "b", "preference")
    write_rows(file, [dict(zip(names, row, strict=True)) for row in rows])
    pairs, votes, facts = asked(f"recorded:{file}", content=digest_of(file))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == list(PAIR.items())
    assert [(row["on"], row["off"]) for row in votes] == [(0.0, 4.0)] * 2
    assert facts["rank"]["oracle"] == {"kind": "recorded", "version": 2, "sha256": digest_of(file)}
    with pytest.raises(BadData, match="the file has changed since the plan was made"):
        asked(f"recorded:{file}", content="0" * 16)


@pytest.mark.parametrize("key", ["reward", "completion-reward"])
def test_a_reward_model_labels_a_round(asked, tmp_path, tiny, key):
    save_reward(tiny, tmp_path / "weights")
    named = f"{key}:{tmp_path / 'weights'}"
    pairs, votes, facts = asked(named, weights=str(tmp_path / "weights"), revision=None)
    oracle = open_oracle(named)
    for pair in pairs:
        (verdict,) = oracle.judge([plain_contest(pair.prompt, pair.chosen, pair.rejected)])
        assert pair.margin == pytest.approx(verdict.on[0] - verdict.off[0], abs=1e-5)
    assert all(row["on"] + row["off"] == 4 for row in votes)
    assert facts["rank"]["oracle"]["kind"] == "reward"
    assert facts["rank"]["truncated_for_oracle"] == 0


def save_reward(tiny, folder):
    lm = tiny()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1,
        pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("oracle", ["judge:m", "reward:org/rm", "completion-reward:org/rm", "recorded:{file}"])
def test_a_preference_names_any_oracle_and_its_labels_have_a_price(oracle, tmp_path):
    file = tmp_path / "judged.jsonl"
    write_rows(file, [{"prompt": "p", "a": "x", "b": "y", "preference": "a"}])
    preference = Preference("toy", "toy", oracle.format(file=file), "alpaca_eval", "dataset", 1)
    for scale in ("lab", "paper"):
        cell = registry.cell("zephyr-dpo-1on", scale)
        cell = replace(cell, scale=replace(cell.scale, preference=replace(preference, gold=cell.scale.preference.gold)))
        run = plan_run(cell, 0)
        assert run.oracle.params["oracle"] == preference.oracle
        costs = [estimate(one, cell.scale) for one in run.artifacts.values() if "oracle" in one.inputs]
        assert len(costs) > 2
        assert all((cost.tokens > 0) != oracle.startswith("recorded") for cost in costs)
    if oracle.startswith("recorded"):
        before = run.oracle.fingerprint
        write_rows(file, [{"prompt": "p", "a": "x", "b": "y", "preference": "b"}])
        assert plan_run(cell, 0).oracle.fingerprint != before, "its content is identity"


@pytest.mark.parametrize("oracle", ["judge", "reward:", "pairrm:x", "gpt"])
def test_an_oracle_that_no_row_takes_is_an_error_at_once(oracle):
    with pytest.raises(BadSpec, match="is unknown; choose one of tfidf, letters, pairrm, reward:NAME"):
        Preference("toy", "toy", oracle, "vowels", "dataset", 1)


def test_one_classifier_never_labels_and_evaluates():
    with pytest.raises(BadSpec, match="oracle and gold reward are both 'reward:org/rm'"):
        Preference("toy", "toy", "completion-reward:org/rm", "reward:org/rm", "dataset", 1)


@pytest.mark.parametrize("kind", ["reward", "completion-reward"])
def test_a_local_reward_model_is_known_by_its_content(kind, tmp_path, tiny):
    folder = tmp_path / "rm"
    save_reward(tiny, folder)
    cell = registry.cell("zephyr-dpo-1on")
    preference = Preference("toy", "toy", f"{kind}:{folder}", cell.scale.preference.gold, "dataset", 1)
    cell = replace(cell, scale=replace(cell.scale, preference=preference))
    before = plan_run(cell, 0).oracle
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert plan_run(cell, 0).oracle.fingerprint != before.fingerprint, "its content is identity"
    (tmp_path / "out").mkdir()
    work = Work(dict(before.params), {}, tmp_path / "out", tmp_path)
    with pytest.raises(BadData, match="its files have changed since the plan was made; plan again"):
        code_at(before.kind.function)(work)


@pytest.mark.parametrize("key", [key for key, row in ORACLES.items() if row.scorer])
def test_a_broken_scorer_shows_on_candidates_that_cannot_teach(key, tmp_path, monkeypatch):
    module, _, function = ORACLES[key].scorer.partition(":")
    monkeypatch.setattr(
        f"{module}.{function}", lambda folder, texts: [float("nan") if not text else 1.0 for text in texts]
    )
    rows = [
        Candidate("p", "", "on", 0),
        Candidate("p", "a text", "on", 1),
        *(Candidate("q", t, "on", i) for i, t in enumerate("ab")),
    ]
    write_rows(tmp_path / "candidates.jsonl", rows)
    (tmp_path / "out").mkdir()
    work = Work({"oracle": key, "sign": 1}, {"candidates": tmp_path, "oracle": tmp_path}, tmp_path / "out", tmp_path)
    with pytest.raises(BadNumbers, match=f"oracle '{key}'"):
        label.rank(work)
