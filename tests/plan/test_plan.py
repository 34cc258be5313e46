"""Cells become unique artifacts: shared prefixes, one spec a path, and a machine's missing requirements come first."""

from dataclasses import replace
from pathlib import Path

import pytest

from stagealign.base.errors import CannotRun, StoreDrift
from stagealign.cli.options import DEMO
from stagealign.execute.executors import Execution
from stagealign.execute.preflight import check_drift, check_machine
from stagealign.grid import registry, select, variants
from stagealign.pipeline.rounds import plan_run
from stagealign.plan import machine, needs
from stagealign.plan.needs import Needs
from stagealign.plan.plan import CHANGED, Wish, make_plan
from stagealign.store.artifact import Devices
from stagealign.store.folder import Store
from stagealign.store.results import read_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty(tmp_path):
    return Store(tmp_path)


def kinds(plan):
    """Number of artifacts of each builder in a plan."""
    names = [artifact.kind.function.partition(":")[2] for artifact in plan.artifacts.values()]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize("key", ["llama3", "pythia"])
def test_a_row_shares_what_its_cells_have_in_common(key, empty):
    """By hand, a method: two sources at every rung, in round 1 and in round 2 from each of two recorded policies."""
    methods = len(select.select("lab", key)) // 6
    plan = make_plan(select.select("lab", key), (0,), empty)
    rungs, starts = len(registry.scale("lab").training.ladder), 2
    policies = methods * (2 * rungs + starts * 2 * rungs)
    sampled = 1 + methods * starts  # on-policy candidates: of the start, and of each policy that round 2 starts from
    pairs = sampled + 2  # and the static ones of both rounds
    assert kinds(plan) == {
        "build_weights": 1,
        "build_films": 1,
        "build_ratings": 1,
        "fit": 1,
        "fit_gold": 1,
        "embed": pairs,
        "measure": 2 + methods * starts * 2,
        "build_sft": 1,
        "build_start": 1,
        "build_static": 3,
        "rank": pairs,
        "build_trunk": pairs,
        "build_reference": 2 + methods * starts * 2,
        "build_policy": policies,
        "build": sampled + 1 + policies,
        "votes": 1 + policies + pairs,
        "score": 1 + policies,
    }
    assert plan.wanted > 2 * len(plan.artifacts)
    assert len(plan.runs) == 6 * methods


def test_parents_come_first(empty):
    plan = make_plan(registry.cells("smoke"), (0,), empty)
    seen = set()
    for path, artifact in plan.artifacts.items():
        assert artifact.path == path
        assert {parent.path for parent in artifact.inputs.values()} <= seen
        seen.add(path)
    assert plan.missing == list(plan.artifacts.values())
    assert plan.seconds == sum(plan.seconds_of[artifact.path] for artifact in plan.missing)


def test_no_path_stands_for_two_specs(empty):
    """Over the whole lab grid and all seeds; and nothing is built twice under two paths."""
    plan = make_plan(registry.cells("lab"), registry.scale("lab").seeds, empty)
    assert len({artifact.fingerprint for artifact in plan.artifacts.values()}) == len(plan.artifacts)
    cells = registry.cells("lab")
    other = replace(cells[0], method=replace(cells[0].method, beta=0.7))
    with pytest.raises(AssertionError, match="two specs share this path"):
        make_plan([cells[0], other], (0,), empty)


def test_scales_share_nothing(empty):
    lab, smoke = (make_plan(registry.cells(key), (0,), empty) for key in ("lab", "smoke"))
    assert not set(lab.artifacts) & set(smoke.artifacts)


def test_the_demo_is_a_part_of_the_grid(empty):
    cells = select.select("lab", DEMO)
    assert [cell.schedule for cell in cells] == ["1off", "1on", "2off_off", "2off_on"]
    demo = make_plan(cells, (0,), empty, Wish(demo=True))
    grid = make_plan(registry.cells("lab"), (0,), empty)
    assert len(demo.artifacts) < len(make_plan(cells, (0,), empty).artifacts)
    for path, artifact in demo.artifacts.items():
        assert grid.artifacts[path].fingerprint == artifact.fingerprint


@pytest.mark.parametrize("name", ["zephyr-dpo-1on", "zephyr-dpo-2off_on"])
def test_the_ladder_belongs_to_the_last_round(name):
    cell = registry.cell(name)
    training = cell.scale.training
    for demo, rates in ((False, training.ladder), (True, (training.learning_rate["on"],))):
        steps = plan_run(cell, 0, demo).rounds[-1]
        assert tuple(step.learning_rate for step in steps) == rates


def test_later_rounds_start_from_the_recorded_rate():
    run = plan_run(registry.cell("zephyr-dpo-2off_on"), 0)
    recorded = run.cell.scale.training.learning_rate
    assert [step.learning_rate for step in run.rounds[0]] == [recorded["off"]]
    assert {step.start.path for step in run.rounds[1]} == {run.rounds[0][0].policy.path}
    assert run.id == "zephyr-dpo-2off_on-seed0"


def test_what_a_round_was_trained_on_is_a_goal_and_no_part_of_a_rung(empty):
    """Older results, without this measurement, keep their rungs; static texts are embedded once for all models."""
    cells = select.select("lab", "dpo and 2off_on")
    for cell in cells:
        run = plan_run(cell, 0)
        steps = [step for steps in run.rounds for step in steps]
        assert {step.data.path for step in steps} <= {goal.path for goal in run.goals}
        for step in steps:
            assert step.data.path not in step.policy.lineage()
            assert step.data.path not in step.scores.lineage()
            assert step.data.path == step.reference.path.removesuffix("reference") + "data"
            assert step.data.inputs["reference"] is step.reference
    plan = make_plan(cells, (0,), empty)
    static = [path for path in plan.artifacts if "/static" in path and path.endswith(("embeddings", "votes"))]
    assert sorted(static) == [f"lab/pan/seed0/static1/{name}" for name in ("embeddings", "votes")]
    assert not [path for path in make_plan(registry.cells("smoke"), (0,), empty).artifacts if "embeddings" in path]


def test_another_models_samples_are_that_models_own_artifacts(empty):
    """PC_llama in round 1 is what Llama-3 samples for itself; in round 2 its start writes for that round's prompts."""
    own = plan_run(registry.cell("llama3-dpo-1on"), 0).rounds[0][0]
    (given,) = plan_run(registry.cell("zephyr-dpo-1llama"), 0).rounds
    for step in given:
        assert step.pairs.fingerprint == own.pairs.fingerprint
        assert step.pairs.path == own.pairs.path
        assert step.start.path == "lab/zephyr/seed0/start"
        assert step.data.inputs["candidates"].inputs["policy"].path == "lab/llama3/seed0/start"
        assert step.policy.path.startswith("lab/pan/zephyr/seed0/1llama/dpo/lr")
    assert [step.learning_rate for step in given] == list(registry.scale("lab").training.ladder)
    first, second = plan_run(registry.cell("zephyr-dpo-2on_llama"), 1).rounds
    assert first[0].learning_rate == registry.scale("lab").training.learning_rate["on"]
    assert second[0].start.path == first[0].policy.path
    candidates = second[0].data.inputs["candidates"]
    assert candidates.path == "lab/pan/llama3/seed1/2on/candidates"
    assert candidates.inputs["policy"].path == "lab/llama3/seed1/start"
    assert candidates.inputs["prompts"].path == "lab/pan/seed1/static2/candidates"
    everything = make_plan(registry.cells("lab", extras=True), registry.scale("lab").seeds, empty)
    assert len({artifact.fingerprint for artifact in everything.artifacts.values()}) == len(everything.artifacts)


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_the_reference_of_a_later_round_is_built_from_what_the_spec_says(scale, empty):
    """By default from the round's start; a variant's from the very first one. Round 1 is shared: there both are one."""
    base, variant = (registry.cell(f"zephyr-{key}-2off_on", scale) for key in ("dpo", "dpo_ref_first"))
    plain_run, other = plan_run(base, 0), plan_run(variant, 0)
    for ours, theirs in zip(plain_run.rounds[0], other.rounds[0], strict=True):
        assert ours.policy.fingerprint == theirs.policy.fingerprint
        assert ours.policy.path == theirs.policy.path
    for ours, theirs in zip(plain_run.rounds[1], other.rounds[1], strict=True):
        assert ours.reference.inputs["policy"] is ours.start
        assert theirs.reference.inputs["policy"].path == other.start.path
        assert theirs.reference.fingerprint != ours.reference.fingerprint
        assert theirs.policy.inputs["reference"] is theirs.reference
        assert theirs.policy.inputs["policy"].path == ours.start.path
        assert theirs.policy.path != ours.policy.path
        assert theirs.data.fingerprint == ours.data.fingerprint, "data is described under the policy that trains on it"
    grid = make_plan(registry.cells(scale, extras=True), (0,), empty)
    assert len({artifact.fingerprint for artifact in grid.artifacts.values()}) == len(grid.artifacts)


def test_committed_results_are_of_todays_spec():
    """What the results name and the plan still makes has the same fingerprint: nothing built must be built again."""
    compared = 0
    for path, found in read_results(ROOT / "results", "lab"):
        assert isinstance(found, dict), path
        planned = plan_run(registry.cell(found["cell"], "lab"), found["seed"]).artifacts
        shared = planned.keys() & found["artifacts"].keys()
        compared += len(shared)
        assert {name: planned[name].fingerprint for name in shared} == {
            name: found["artifacts"][name]["fingerprint"] for name in shared
        }
    if not compared:
        pytest.skip("no results of the lab are here")


def test_what_is_built_is_ready(empty, monkeypatch):
    cells = select.select("smoke", "pythia-dpo-1off")
    plan = make_plan(cells, (0,), empty)
    first = plan.missing[0]
    monkeypatch.setattr(Store, "changes", lambda self, artifact: [] if artifact.path == first.path else None)
    again = make_plan(cells, (0,), empty)
    assert again.ready == {first.path}
    assert [artifact.path for artifact in again.missing] == [artifact.path for artifact in plan.missing[1:]]


def test_a_store_of_another_spec_is_refused_before_work(empty):
    cells = select.select("smoke", "pythia-dpo-1off")
    prompts = next(a for path, a in make_plan(cells, (0,), empty).artifacts.items() if path == "smoke/prompts")
    empty.build(replace(prompts, params={**prompts.params, "test_prompts": 99}))
    plan = make_plan(cells, (0,), empty)
    assert next(item for item in plan.items if item.artifact.path == prompts.path).state == CHANGED
    with pytest.raises(StoreDrift, match=r"params\.test_prompts was 99, now 4"):
        check_drift(plan, empty)


def check(store, cells, devices=None):
    """Requirements of the cells that this machine does not meet."""
    check_machine(make_plan(cells, (0,), store), store, Execution(devices=devices or Devices()))


def test_a_machine_that_cannot_is_told_everything_that_lacks(empty, monkeypatch):
    cells = registry.cells("paper")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(machine, "gpu_memory", lambda: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10 * 2**30}))
    with pytest.raises(CannotRun) as caught:
        check(empty, cells)
    message = str(caught.value)
    for words in (
        "a GPU: none was found",
        "GiB for artifacts, 10 GiB free",
        "Meta-Llama-3-8B-Instruct",
        "HF_TOKEN",
        "--scale lab",
    ):
        assert words in message
    monkeypatch.setattr(machine, "gpu_memory", lambda: 24 * 2**30)
    monkeypatch.setenv("HF_TOKEN", "x")
    with pytest.raises(
        CannotRun, match=r"GPU memory: 127 GiB by estimate for .*/policy, 24 GiB found; spread"
    ) as caught:
        check(empty, cells)
    assert "gated" not in str(caught.value)
    with pytest.raises(CannotRun) as caught:
        check(empty, select.select("paper", "phi2"))
    assert "Llama" not in str(caught.value)


def test_at_paper_scale_a_part_is_labelled_while_the_next_is_sampled(empty):
    order = list(make_plan(select.select("paper", "zephyr-dpo-1on"), (0,), empty).artifacts)
    where = "paper/helpful/zephyr/seed0/1on"
    for part in range(1, 8):
        assert order.index(f"{where}/pairs-{part}of8") < order.index(f"{where}/candidates-{part + 1}of8")
    assert order.index(f"{where}/pairs-8of8") < order.index(f"{where}/pairs") < order.index(f"{where}/reference")


def test_gpu_memory_is_that_of_what_will_be_done(empty, monkeypatch):
    """A card of 32 GiB: not for a round of 8B, but for an eighth of it, or for its adapters."""

    def lacks(cells, devices=None):
        with pytest.raises(CannotRun) as caught:
            check(empty, cells, devices)
        return str(caught.value)

    cells = select.select("paper", "zephyr and dpo and 1off")
    monkeypatch.setattr(machine, "gpu_memory", lambda: 38 * 2**30)
    assert "GPU memory: 1" in lacks(cells)
    assert "GPU memory" not in lacks(cells, Devices(8))
    assert "GPU memory: 1" in lacks(cells, Devices(8, "replicate"))
    assert "GPU memory" not in lacks(cells, Devices(1, launcher=("torchrun",)))
    assert "GPU memory" not in lacks(variants.adapted(cells, "lora"))
    monkeypatch.setattr(machine, "free_memory", lambda: 2**30)
    assert "  - memory: 5" in lacks(cells)


def test_as_many_are_built_side_by_side_as_memory_holds(monkeypatch):
    wanted = {f"lab/{n}": Needs(1, 0, n * 2**30) for n in (1, 2, 3)}
    monkeypatch.setattr(needs, "free_memory", lambda: int(5.5 * 2**30))
    assert needs.side_by_side(wanted, 3, asked=False) == 2
    assert needs.side_by_side(wanted, 2, asked=True) == 2
    assert needs.side_by_side({}, 2, asked=True) == 0
    with pytest.raises(
        CannotRun, match=r"3 artifacts side by side would take about 6.0 GiB, 5.5 GiB are free; use --workers 2"
    ):
        needs.side_by_side(wanted, 3, asked=True)
    monkeypatch.setattr(needs, "free_memory", lambda: 2 * 2**30)
    with pytest.raises(CannotRun, match=r"lab/3 would take about 3.0 GiB, 2.0 GiB are free"):
        needs.side_by_side(wanted, 3, asked=False)


def test_gpu_memory_is_asked_of_the_driver(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '81559\\n40960\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_memory() == 81559 * 2**20
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpu_memory() is None
    monkeypatch.setenv("PATH", "")
    assert machine.gpu_memory() is None


@pytest.mark.parametrize("key", ["lab", "smoke"])
def test_other_scales_run_anywhere(key, empty):
    check(empty, registry.cells(key))
