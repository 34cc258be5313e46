"""The paper's cells end to end on the paper's code path, with tiny stand-ins for what only a GPU or the hub has.

The data sets come from local files in the published shape, PairRM and the policy are random, and the official judge is
a server on the loopback: no number here means anything, every step is the one that a real run takes.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from factory_paper import KEY, PROMPTS, WORDS

from stagealign.base.errors import BadData, BadSpec, CannotRun, StagealignError
from stagealign.base.identity import plain as identity
from stagealign.base.shapes import misfit
from stagealign.cli.run import build
from stagealign.cli.variants import Variant
from stagealign.data.records import Candidate, Pair, prompt_hash, read_dicts, read_rows
from stagealign.evaluate.alpaca_eval.length_control import (
    LEARNED,
    features,
    fit,
    length_controlled,
    pseudo_values,
    sampling_error,
)
from stagealign.evaluate.alpaca_eval.scores import annotated_readings
from stagealign.execute import preflight
from stagealign.execute.executors import Execution
from stagealign.grid import registry, scales, select, variants
from stagealign.grid.spec import Decoding, Judging
from stagealign.pipeline.result import result, unfinished
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.plan import make_plan
from stagealign.scoring.contest import Contest
from stagealign.scoring.reward_model import load as load_reward_model
from stagealign.store.artifact import Context
from stagealign.store.folder import Store
from stagealign.store.results import SHAPE

pytest.importorskip("alpaca_eval", reason="the extra `eval` is not installed")
pytest.importorskip("httpx", reason="the extra `judge` is not installed")


def test_a_paper_cell_runs_from_its_data_to_its_result(paper, judge, tmp_path):
    """SFT, PairRM's labels, two rounds, answers to AlpacaEval's prompts, the judge, the length-controlled win rate."""
    run = plan_run(registry.cell("phi2-dpo-2off_on", "paper"), 0)
    store = Store(context=Context(spend=5.0))
    for artifact in run.artifacts.values():
        store.build(artifact)
    found = result(run, store)
    assert misfit(found, SHAPE) is None
    assert KEY not in json.dumps(found)
    first, second = found["rounds"]
    assert (first["source"], second["source"]) == ("off", "on")
    test = second["rungs"][0]["metrics"]["test"]
    assert "validation" not in second["rungs"][0]["metrics"]
    assert (test["gold"]["unit"], test["gold"]["n"]) == ("LC win rate points", PROMPTS)
    assert test["boundary"]["prompts"] == 4, "of UltraFeedback's test prompts, not the judge's"
    gain = second["rungs"][0]["gain"]["test"]
    assert gain["unit"] == "LC win rate points"
    assert gain["value"] == pytest.approx(test["gold"]["value"] - first["rungs"][0]["metrics"]["test"]["gold"]["value"])
    # The gold reward is the rate that `stagealign lc-win-rate` would give, and the judge was asked each thing once.
    scores = run.rounds[1][0].scores
    annotations = scores.inputs["annotations"]
    rows = list(read_dicts(store.file(annotations, "annotations.jsonl")))
    inputs = features(*([row[name] for row in rows] for name in ("baseline_chars", "model_chars", "difficulty")))
    wins = np.array([row["preference"] - 1 for row in rows])
    weights = fit(inputs, wins, LEARNED.for_rows(PROMPTS))
    assert test["gold"]["value"] == pytest.approx(length_controlled(weights, inputs[:, 1]).mean())
    assert test["win_rate"]["value"] == pytest.approx(100 * wins.mean())
    facts = store.record(annotations)["facts"]
    assert (facts["n"], facts["answered"], facts["failed"]) == (PROMPTS, PROMPTS, [])
    asked = [request["messages"][-1]["content"] for _, _, request in judge.seen]
    assert len(asked) == len(set(asked)) <= 3 * PROMPTS
    assert {sample["text"] for sample in found["samples"]} <= {
        f"Task {i}: what is a {WORDS[i]}?" for i in range(PROMPTS)
    }
    answers = store.record(scores.inputs["answers"])["identity"]["params"]["decoding"]
    assert (answers["top_k"], answers["presence_penalty"], answers["frequency_penalty"]) == (40, 0.1, 0.1)


def test_what_the_judge_cannot_be_asked_stops_the_artifact_and_costs_nothing_twice(paper, judge):
    run = plan_run(registry.cell("zephyr-dpo-1off", "paper"), 0)
    store, annotations = Store(context=Context(spend=5.0)), run.start_scores.inputs["annotations"]
    for artifact in annotations.lineage().values():
        if artifact.path != annotations.path:
            store.build(artifact)
    judge.refuses = "Task 7"
    with pytest.raises(StagealignError, match=r"over 11 of 12 prompts; 1 failed: unreliable.*nonsense"):
        store.build(annotations)
    asked = len(judge.seen)
    judge.refuses = ""
    store.build(annotations)
    assert len(judge.seen) == asked + 1, "what was answered is kept, the failed one asked again"
    poor = Store(context=Context(spend=0.0001))
    other = replace(annotations, path="paper/elsewhere/annotations", params={"judge": "official"})
    assert poor.build(other)["facts"]["answered"] == PROMPTS, "all is kept: nothing is paid"


def test_the_spending_limit_is_named_before_anything_is_built(paper, judge, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "check_machine", lambda *_: None)
    monkeypatch.setattr("stagealign.plan.needs.free_memory", lambda: 1 << 40)
    cells = select.select("paper", "zephyr-dpo-1off")
    plan = make_plan(cells, (0,), Store())
    with pytest.raises(CannotRun, match=r"asked about 2 policies, for about \$\d+\.\d\d; name .* --spend \d+\.\d\d"):
        build(plan, Store(), Execution(), tmp_path / "results")
    assert not (tmp_path / "home").exists()
    assert preflight.spend_each(plan, 10.0) == 5.0


def test_any_reward_model_can_be_the_gold_reward(paper, tmp_path, monkeypatch):
    """Cells of their own, on shared policies; its scores are those of the classifier alone, and it is no oracle."""
    from factory_rewards import save

    from stagealign.scoring import reward_model as rewards

    folder = save(tmp_path / "Reward-Model_1", chat=True, max_position_embeddings=512)
    cell = registry.cell("zephyr-dpo-1off", "paper")
    (own,), place = Variant(gold=f"reward:{folder}").cells([cell])
    assert own.scale.preference.gold_parameters == load_reward_model(str(folder)).model.num_parameters()
    assert own.id == "zephyr-dpo_rewardmodel1-1off"
    assert place == folder
    told = unfinished(plan_run(own, 0), "failed", "why")["method"]
    assert told["key"] == "dpo_rewardmodel1", "so that a report never mixes it with the others"
    assert told["name"].startswith("DPO, gold reward: Reward-Model_1@")
    assert folder not in json.dumps(identity(own))
    run, plain_run = plan_run(own, 0), plan_run(cell, 0)
    shared = run.artifacts.keys() & plain_run.artifacts.keys()
    assert run.rounds[0][0].policy.path in shared
    assert all(run.artifacts[path].fingerprint == plain_run.artifacts[path].fingerprint for path in shared)
    assert not any("annotations" in path for path in run.artifacts)
    store = Store(context=Context(gold_folder=place))
    for artifact in run.start_scores.lineage().values():
        store.build(artifact)
    scores = json.loads(store.file(run.start_scores, "scores.json").read_text(encoding="utf-8"))
    assert (scores.keys(), scores["test"]["gold"]["unit"]) == ({"test"}, "points of the reward model")
    alone = rewards.load(folder)
    texts = list(read_dicts(store.file(run.start_scores.inputs["completions"], "candidates.jsonl")))
    for prompt in {one["prompt"] for one in texts}:
        mine = tuple(one["completion"] for one in texts if one["prompt"] == prompt)
        (found,) = alone.judge([Contest(prompt, mine, ())])
        assert scores["test"]["prompts"][prompt_hash(prompt)][0] == pytest.approx(np.mean(found.on), abs=1e-4)
    (tmp_path / "Reward-Model_1/extra.json").write_text("{}", encoding="utf-8")
    changed = Store(tmp_path / "other", Context(gold_folder=place))
    with pytest.raises(StagealignError, match="its files have changed since the plan was made"):
        changed.build(run.gold)
    with pytest.raises(BadSpec, match="it is the oracle that labels"):
        variants.evaluated_by([cell], f"reward:{paper.oracle_weights}")
    for wrong, words in (
        ("judge:x", "reward:ID_OR_PATH"),
        (f"reward:{save(tmp_path / 'two', labels=2)}", "has 2 rows"),
    ):
        with pytest.raises(StagealignError, match=words):
            Variant(gold=wrong).cells([cell])


def test_a_round_in_parts_is_the_round_in_one(paper, tmp_path, monkeypatch):
    """The same samples, pairs and counts; a part is labelled without the others, so while they are sampled."""
    made = {}
    for parts in (1, 2, 3):
        monkeypatch.setitem(scales.SCALES, "paper", replace(paper, parts=parts))
        run, store = plan_run(registry.cell("zephyr-dpo-1on", "paper"), 0), Store(tmp_path / str(parts))
        pairs = run.rounds[0][0].pairs
        lineage = pairs.lineage()
        for artifact in lineage.values():
            store.build(artifact)
        candidates = lineage[pairs.path.replace("pairs", "candidates")]
        rows, texts = read_rows(store.file(pairs, "pairs.jsonl"), Pair), store.file(candidates, "candidates.jsonl")
        facts = store.record(pairs)["facts"] | store.record(candidates)["facts"]
        counted = ("pairs", "truncated", "drops", "truncated_for_oracle", "candidates", "tokens")
        made[parts] = rows, texts.read_bytes(), {name: facts[name] for name in counted}
        assert facts["margin"] == round(float(np.mean([one.margin for one in rows])), 4)
        if parts > 1:
            first = lineage[f"{pairs.path}-1of{parts}"].lineage()
            assert f"{candidates.path}-1of{parts}" in first
            assert f"{candidates.path}-2of{parts}" not in first
            assert plan_run(registry.cell("zephyr-dpo-1on", "paper"), 0).cell == run.cell
    for parts in (2, 3):
        assert made[parts][1:] == made[1][1:]
        for one, other in zip(made[parts][0], made[1][0], strict=True):
            assert one.prompt == other.prompt
            assert one.margin == pytest.approx(other.margin, abs=1e-6), "PairRM reads them in other batches"
            assert one == replace(other, margin=one.margin) or one.margin < 1e-6
    monkeypatch.setitem(scales.SCALES, "paper", replace(paper, parts=9))
    last = plan_run(registry.cell("zephyr-dpo-1on", "paper"), 0).artifacts
    store = Store(tmp_path / "1")
    with pytest.raises(BadData, match="8 prompts cannot be cut into the scale's 9 parts"):
        store.build(next(one for path, one in last.items() if path.endswith("candidates-1of9")))


def test_alpaca_evals_files_are_checked(paper, mirror, tmp_path):
    gold = plan_run(registry.cell("zephyr-dpo-1off", "paper"), 0).gold
    facts = Store().build(gold)["facts"]
    assert (facts["prompts"], facts["baseline"], facts["revision"]) == (PROMPTS, "gpt4", None)
    file = mirror / "alpaca_eval/instruction_difficulty.csv"
    whole = file.read_text(encoding="utf-8")
    for changed, reason in (
        (whole.replace("11,-1.1\n", ""), r"no difficulty of 1 prompts, such as \[11\]"),
        (whole.replace("11,-1.1", "10,-1.1"), r"prompt_index 10 found again: 1 \(row 12\)"),
        (whole.replace("-1.1", "hard"), "instruction_difficulty 'hard' is not a number"),
        (whole.replace("-1.1", "nan"), "instruction_difficulty 'nan' is not finite"),
    ):
        file.write_text(changed, encoding="utf-8")
        again = plan_run(registry.cell("zephyr-dpo-1off", "paper"), 0).gold
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        with pytest.raises(BadData, match=reason):
            Store().build(again)
    file.write_text(whole, encoding="utf-8")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    with pytest.raises(BadData, match="local files have changed since the plan was made"):
        Store().build(again)


def test_pseudo_values_are_the_rate_and_its_error():
    rng = np.random.default_rng(3)
    n = 300
    chars = rng.integers(50, 3000, (2, n))
    inputs = features(chars[0], chars[1], rng.normal(0, 1, n))
    outcomes = rng.random(n)
    weights = fit(inputs, outcomes, LEARNED.for_rows(n))
    values = pseudo_values(inputs, outcomes)
    assert values.mean() == pytest.approx(length_controlled(weights, inputs[:, 1]).mean())
    error = sampling_error(inputs, outcomes, weights, LEARNED.for_rows(n))
    assert values.std(ddof=1) / np.sqrt(n) == pytest.approx(error)


def test_a_prompt_without_a_preference_moves_no_rate_and_breaks_no_pairing():
    rows = [
        {
            "prompt_hash": prompt_hash(f"p{i}"),
            "preference": 1 + (i % 3) / 2,
            "baseline_chars": 90 + i,
            "model_chars": 60 + 3 * i,
        }
        | {"difficulty": i / 10}
        for i in range(9)
    ]
    answers = [Candidate(f"p{i}", "a b a b a b a b" if i == 4 else f"text {i}", "on", 0) for i in range(9)]
    whole = annotated_readings(answers[:8], rows[:8], 0.2)
    rows[8]["preference"] = None
    found = annotated_readings(answers, rows, 0.2)
    assert {f"p{i}": found[f"p{i}"] for i in range(8)} == whole
    assert found["p8"].gold == pytest.approx(np.mean([one.gold for one in whole.values()]))
    assert found["p8"].win_rate == pytest.approx(100 * np.mean([(i % 3) / 2 for i in range(8)]))
    clean, plain = (np.mean([getattr(one, name) for one in whole.values()]) for name in ("clean_gold", "gold"))
    assert clean < plain, "the degenerate answer of p4 won half, and counts as lost"


def test_the_answers_are_decoded_as_the_authors_do():
    judging = registry.scale("paper").evaluation.judging
    assert isinstance(judging, Judging)
    assert judging.prompts == 805
    assert judging.decoding == Decoding(0.7, 0.9, 40, 4096, 0.1, 0.1)
