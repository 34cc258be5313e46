"""A cell whose data has prompts that the policy cannot hold: each is a counted drop by name, and the run goes on."""

import json
from dataclasses import replace

import pytest
from factory_paper import PROMPTS, chat

from stagealign.base.shapes import misfit
from stagealign.data.records import Candidate, Pair, prompt_hash, read_dicts, read_rows
from stagealign.grid import registry, scales
from stagealign.pipeline.result import result
from stagealign.pipeline.rounds import plan_run
from stagealign.policy.context import FILLED, TOO_LONG
from stagealign.store.artifact import Context
from stagealign.store.folder import Store
from stagealign.store.results import SHAPE

LONG, LONG_TEST, LONG_TASK = (f"{name}: say it again{' and again' * 60}" for name in ("Train", "Test", "Task"))
"""Fill the tiny policy's context of 512 bytes."""
LONGER_THAN_TRAINING = "Name a sea, please" + ", please" * 13
"""Fits the context, and fills the 96 tokens of training with its 122 bytes."""


def with_rows(folder, name, prompts):
    path = folder / f"ultrafeedback_binarized/{name}.jsonl"
    rows = [{"prompt": p, "chosen": chat(p, "the sea of old"), "rejected": chat(p, "no")} for p in prompts]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("parts", [1, 2])
def test_long_prompts_are_counted_drops_of_every_step(parts, paper, judge, mirror, monkeypatch):
    with_rows(mirror, "train_prefs", [LONG, LONGER_THAN_TRAINING])
    with_rows(mirror, "test_prefs", [LONG_TEST])
    baseline = mirror / "alpaca_eval/alpaca_eval_gpt4_baseline.json"
    tasks = json.loads(baseline.read_text())
    tasks[3]["instruction"] = LONG_TASK
    baseline.write_text(json.dumps(tasks))
    training = replace(paper.training, pairs=10)
    changed = replace(paper, training=training, evaluation=replace(paper.evaluation, test_prompts=5), parts=parts)
    monkeypatch.setitem(scales.SCALES, "paper", changed)
    run = plan_run(registry.cell("zephyr-dpo-2off_on", "paper"), 0)
    store = Store(context=Context(spend=5.0))
    for artifact in run.artifacts.values():
        store.build(artifact)
    found = result(run, store)
    assert misfit(found, SHAPE) is None
    off, on = found["rounds"]
    assert off["pairs"]["drops"][TOO_LONG] == 2
    assert (on["pairs"]["drops"][FILLED], on["pairs"]["drops"][TOO_LONG]) == (1, 1)
    step = run.rounds[1][0]
    names = {one: prompt_hash(one) for one in (LONG, LONGER_THAN_TRAINING)}
    of = found["artifacts"]
    assert set(of[step.reference.path]["dropped"]) == {names[LONGER_THAN_TRAINING]}
    candidates = step.pairs.inputs["candidates"]
    assert set(of[candidates.path]["dropped"]) == {names[LONG]}
    sampled = read_rows(store.file(candidates, "candidates.jsonl"), Candidate)
    assert len(sampled) == 2 * 9
    labelled = read_rows(store.file(step.pairs, "pairs.jsonl"), Pair)
    assert LONG not in {pair.prompt for pair in labelled}
    # The rest of the run is over the prompts that are there.
    test = on["rungs"][0]["metrics"]["test"]
    assert test["boundary"]["prompts"] == 4
    assert test["gold"]["n"] == PROMPTS - 1
    assert prompt_hash(LONG_TASK) not in test["prompts"]
    assert on["rungs"][0]["gain"]["test"]["n"] == PROMPTS - 1
    annotations = store.record(step.scores.inputs["annotations"])["facts"]
    assert (annotations["n"], annotations["dropped"], annotations["failed"]) == (PROMPTS - 1, 1, [])
    rows = list(read_dicts(store.file(step.scores.inputs["annotations"], "annotations.jsonl")))
    assert [row["prompt_index"] for row in rows] == [i for i in range(PROMPTS) if i != 3], "difficulties stay joined"
    assert on["data"]["prompts"] + sum(on["data"]["drops"].values()) == 9
