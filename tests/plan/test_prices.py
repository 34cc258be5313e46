"""Prices: every kind that any plan meets has its own, and `run` and `plan` take the same."""

import json
from dataclasses import replace

import pytest

from stagealign.base.errors import BadSpec, CannotRun
from stagealign.base.kind import Kind
from stagealign.cli.output import clock
from stagealign.cli.plan import plan as plan_command
from stagealign.cli.plan import priced_plan
from stagealign.cli.run import build
from stagealign.execute.executors import Execution
from stagealign.execute.preflight import spend_each
from stagealign.grid import registry, scales, select, variants
from stagealign.pipeline import kinds
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.flops import GIB
from stagealign.plan.labelling import LABELLING
from stagealign.plan.machine import paid_models
from stagealign.plan.needs import needs_of
from stagealign.plan.plan import Wish, make_plan
from stagealign.plan.price import PRICES, estimate
from stagealign.store.artifact import Artifact, Devices
from stagealign.store.folder import Store
from tests.identities import CHANGES

CLASSIFIER = "reward:org/Reward-Model"
WEIGHTS = ("policy", "start", "reference", "trunk", "capability", "rewards")
"""Roles of artifacts that read the weights of a language model or a classifier."""


def labelled_by(cells, oracle, **parameters):
    """The cells with another oracle, as a row of `PREFERENCES` would name it."""
    for cell in cells:
        scale = cell.scale
        preference = replace(scale.preference, oracle=oracle, **parameters)
        yield replace(cell, scale=replace(scale, preference=preference, oracle_weights=None))


CHANGED = {
    **CHANGES,
    "reward oracle": lambda cells: labelled_by(cells, "reward:org/Labeller"),
    "oracle of completions alone": lambda cells: labelled_by(cells, "completion-reward:org/Labeller"),
    "judge of known price": lambda cells: labelled_by(cells, "judge:gpt-4-1106-preview"),
    "judge of unknown price": lambda cells: labelled_by(cells, "judge:org/Judge-32B"),
}


def met(scale, change):
    """One artifact of each kind and role in the changed cells, with the scale of its cell."""
    found = {}
    for cell in CHANGED[change](registry.cells(scale, extras=True)):
        for artifact in plan_run(cell, 0, capability=True).artifacts.values():
            found.setdefault((artifact.kind, artifact.role), (artifact, cell.scale))
    return found.values()


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("scale", list(scales.SCALES))
def test_every_kind_that_a_plan_meets_has_a_price_of_its_own(scale, change):
    for artifact, of in met(scale, change):
        assert artifact.kind.price in PRICES, artifact.kind
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


def labels_of(cell):
    """Estimates of what the oracle labels in a cell: pairs and votes, by path; joined parts ask nothing."""
    artifacts = [one for one in plan_run(cell, 0).artifacts.values() if one.role in ("pairs", "votes")]
    return {one.path: estimate(one, cell.scale) for one in artifacts if one.kind != kinds.JOINED_PAIRS}


@pytest.mark.parametrize("scale", list(scales.SCALES))
def test_every_price_of_labels_is_met_by_a_plan(scale):
    """Prices that no tested plan meets would be typed at will."""
    prices = {artifact.kind.price for change in CHANGED for artifact, _ in met(scale, change)}
    assert set(LABELLING) <= prices


@pytest.mark.parametrize("key", ["reward", "completion-reward"])
def test_a_classifier_that_labels_is_priced_by_its_own_size_and_one_that_evaluates_by_its_own(key):
    base = registry.cell("zephyr-dpo-1off", "paper")
    sizes = {"oracle_parameters": 1e9, "gold_parameters": 7e9, "gold": CLASSIFIER}
    (cell,) = labelled_by([base], f"{key}:org/Labeller", **sizes)
    artifacts = plan_run(cell, 0).artifacts.values()
    loaded = {one.role: estimate(one, cell.scale).loaded for one in artifacts}
    assert (loaded["oracle"], loaded["pairs"], loaded["votes"]) == (4e9, 4e9, 4e9)
    assert (loaded["gold"], loaded["rewards"]) == (28e9, 28e9)
    (unknown,) = labelled_by([base], f"{key}:org/Labeller")
    assert {cost.loaded for cost in labels_of(unknown).values()} == {4 * 8.03e9}, "as large as the largest model"


def test_a_paid_judge_that_labels_has_a_price_and_needs_a_limit(tmp_path):
    """By hand, of one vote of the lab: (130 + 43.5 + 18.4 + 23) tokens a question, 8 questions a prompt."""
    (cell,) = labelled_by([registry.cell("zephyr-dpo-1off")], "judge:gpt-4-1106-preview")
    costs = labels_of(cell)
    assert all(cost.judge_dollars > 0 and not cost.unpriced for cost in costs.values())
    questions = 80 * 8
    held_out = [one for one in plan_run(cell, 0).artifacts.values() if one.role == "completions"]
    votes = costs[f"{held_out[0].folder}/votes"]
    assert votes.judge_dollars == pytest.approx((questions * 214.9 * 10 + questions * 30) / 1e6)
    plan = make_plan([cell], (0,), Store(tmp_path))
    in_all = sum(cost.judge_dollars for cost in costs.values())
    assert plan.totals.judge_dollars == pytest.approx(in_all, abs=0.01)
    with pytest.raises(
        CannotRun, match=rf"gpt-4-1106-preview is asked about \d+ sets of texts, for about \${in_all:.2f}"
    ):
        spend_each(plan, None)
    with pytest.raises(CannotRun, match=r"--spend 0\.01 is less than its labels alone"):
        spend_each(plan, 0.01)
    assert spend_each(plan, in_all + 1) is None, "no policy is evaluated by a judge"


def test_what_labels_leave_of_a_limit_is_for_the_evaluations(tmp_path):
    (cell,) = labelled_by([registry.cell("zephyr-dpo-1off", "paper")], "judge:gpt-4-1106-preview")
    plan = make_plan([cell], (0,), Store(tmp_path))
    labels = sum(cost.judge_dollars for cost in labels_of(cell).values())
    assert spend_each(plan, labels + 30) == pytest.approx(15), "of the start, and of the round's end"
    assert paid_models(plan.to_build) == ["gpt-4-1106-preview"]


def test_an_unknown_price_is_said_and_not_zero(tmp_path, capsys):
    (cell,) = labelled_by([registry.cell("zephyr-dpo-1off")], "judge:org/Judge-32B")
    plan = make_plan([cell], (0,), Store(tmp_path))
    written = plan.plain([])
    labels = [one for one in written["artifacts"] if one["id"] in labels_of(cell)]
    assert {one["judge_dollars"] for one in labels} == {None}
    assert written["totals"]["judge_dollars"] is None
    assert written["totals"]["unpriced_judges"] == ("org/Judge-32B",)
    (remark,) = [line for line in written["remarks"] if "Judge-32B" in line]
    assert remark.startswith("judge org/Judge-32B: its price is unknown")
    priced_plan(plan, [])
    shown = capsys.readouterr().out
    assert remark in shown
    assert any(
        line.split()[0] == "votes" and line.rstrip().endswith("?") for line in shown.splitlines() if line.strip()
    )
    assert spend_each(plan, None) is None, "no limit can hold what has no price"


def test_contexts_that_cap_new_tokens_are_said_before_work(tmp_path):
    """18 of the paper's 48 cells: two models of context 2,048, asked for 2,048 and 4,096 new tokens."""
    cells = select.select("paper")
    plan = make_plan(cells, (0,), Store(tmp_path))
    lines = plan.plain([])["remarks"]
    assert [line.partition(":")[0] for line in lines] == ["microsoft/phi-2", "EleutherAI/pythia-2.8b"]
    for line in lines:
        assert "context of 2,048 tokens caps new tokens" in line
        assert "asked: 2,048 for candidates and completions, 4,096 for answers" in line or (
            "asked: 2,048 for completions and candidates, 4,096 for answers" in line
        )
    assert sum(cell.model.key in ("phi2", "pythia") for cell in cells) == 18
    lab = make_plan(select.select("lab"), (0,), Store(tmp_path))
    assert lab.plain([])["remarks"] == []


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
