"""Prices: every kind that any plan meets has its own, and `run` and `plan` take the same."""

import json
from dataclasses import replace

import pytest

from stagealign.base.errors import BadSpec
from stagealign.base.kind import Kind
from stagealign.cli.output import clock
from stagealign.cli.plan import plan as plan_command
from stagealign.cli.run import build
from stagealign.execute.executors import Execution
from stagealign.grid import registry, scales, select, variants
from stagealign.pipeline import kinds
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.flops import GIB
from stagealign.plan.formulas import FORMULAS
from stagealign.plan.needs import needs_of
from stagealign.plan.plan import Wish, make_plan
from stagealign.plan.price import estimate
from stagealign.store.artifact import Artifact, Devices
from stagealign.store.folder import Store
from tests.identities import CHANGES

CLASSIFIER = "reward:org/Reward-Model"
WEIGHTS = ("policy", "start", "reference", "trunk", "capability", "rewards")
"""Roles of artifacts that read the weights of a language model or a classifier."""


def met(scale, change):
    """One artifact of each kind and role in the changed cells, with the scale of its cell."""
    found = {}
    for cell in CHANGES[change](registry.cells(scale, extras=True)):
        for artifact in plan_run(cell, 0, capability=True).artifacts.values():
            found.setdefault((artifact.kind, artifact.role), (artifact, cell.scale))
    return found.values()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scale", list(scales.SCALES))
def test_every_kind_that_a_plan_meets_has_a_price_of_its_own(scale, change):
    for artifact, of in met(scale, change):
        assert artifact.kind.price in FORMULAS, artifact.kind
        cost = estimate(artifact, of)
        if artifact.role in WEIGHTS or ("policy" in artifact.inputs and artifact.role != "data"):
            assert artifact.kind.price != "free" or artifact.kind == kinds.LINK, artifact.path
        if artifact.role in ("capability", "rewards", "policy", "completions", "answers"):
            assert cost.flops, artifact.path
            assert cost.memory > 0, artifact.path


def test_a_kind_without_a_price_is_an_error():
    for price in ("", "fre"):
        artifact = Artifact("a", Kind("some.name:build", price=price))
        with pytest.raises(BadSpec, match=rf"kind 'some.name:build': price '{price}' is unknown; choose one of free"):
            estimate(artifact, registry.scale("lab"))


def test_a_reward_model_that_evaluates_has_a_gpu_at_paper_scale():
    """A classifier of 8B weights needs a GPU and the memory of its weights, not one core and 1 GiB."""
    (cell,) = variants.evaluated_by([registry.cell("zephyr-dpo-1on", "paper")], CLASSIFIER)
    artifacts = plan_run(cell, 0).artifacts.values()
    scored = [artifact for artifact in artifacts if artifact.role == "rewards"]
    fetched = [artifact for artifact in artifacts if artifact.role == "gold"]
    assert scored
    assert len(fetched) == 1
    for artifact in (*scored, *fetched):
        needs = needs_of(artifact, cell.scale, Devices(8))
        assert (needs.gpus, needs.device_memory > 8 * GIB) == (1, True), artifact.path
    plain_needs = [needs_of(artifact, cell.scale, Devices()) for artifact in artifacts if artifact.role == "votes"]
    assert max(needs.device_memory for needs in plain_needs) < needs_of(scored[0], cell.scale, Devices()).device_memory


def test_a_reward_model_of_known_size_is_priced_by_it():
    (cell,) = variants.evaluated_by([registry.cell("zephyr-dpo-1on", "paper")], CLASSIFIER)
    known = replace(cell.scale, preference=replace(cell.scale.preference, gold_parameters=1e9))
    (scored, *_) = (one for one in plan_run(cell, 0).artifacts.values() if one.role == "rewards")
    small, largest = estimate(scored, known), estimate(scored, cell.scale)
    assert small.loaded == 4e9 < largest.loaded
    assert small.flops["forward"] < largest.flops["forward"]


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_capability_is_planned_with_what_it_costs(scale, tmp_path):
    cells, store = select.select(scale, "zephyr-dpo-1on"), Store(tmp_path)
    without, asked = (make_plan(cells, (0,), store, Wish(capability=wanted)) for wanted in (False, True))
    added = [item for item in asked.items if item.artifact.role == "capability"]
    assert len(added) == 2, "of the start, and of the round's end"
    assert asked.seconds == pytest.approx(without.seconds + sum(item.seconds for item in added))
    for item in added:
        assert item.seconds > kinds.CAPABILITY.light
        assert item.cost.tokens > 1e4


@pytest.mark.parametrize("wish", [Wish(), Wish(capability=True)], ids=["plain", "capability"])
def test_run_and_plan_say_the_same_time(wish, tmp_path, monkeypatch, capsys):
    if wish.capability:
        pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("stagealign.plan.needs.free_memory", lambda: 1 << 40)
    results, target = tmp_path / "results", tmp_path / "plan.json"
    plan_command("zephyr-dpo-1on", seeds=1, capability=wish.capability, results=results, json_file=str(target))
    capsys.readouterr()
    store = Store()
    plan = make_plan(select.select("lab", "zephyr-dpo-1on"), (0,), store, wish)
    build(plan, store, Execution(workers=1), results, dry_run=True)
    seconds = json.loads(target.read_text(encoding="utf-8"))["totals"]["cpu_seconds"]
    assert seconds == pytest.approx(plan.seconds, abs=0.1)
    assert f"about {clock(seconds)} on 1 x {plan.processor.name}" in capsys.readouterr().out
