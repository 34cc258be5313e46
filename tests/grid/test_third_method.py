"""A third method is a row of `BASES` and a loss: every room then knows it."""

from dataclasses import replace

import pytest
from factory_training import DPO, SETTINGS, data_of, distance, pairs_of, weights_of

from stagealign.base.errors import BadSpec
from stagealign.execute.preflight import check_devices
from stagealign.grid import methods, models, registry
from stagealign.grid.select import select
from stagealign.grid.spec import Method
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.plan import make_plan
from stagealign.store.artifact import Devices
from stagealign.store.folder import Store
from stagealign.train import losses
from stagealign.train.trainer import align

TOY = Method("ipo", "IPO", form="squared", beta=0.1)


def squared(logps, constants):
    return (losses.log_ratio_margin(logps) - 1 / (2 * constants.beta)) ** 2


@pytest.fixture
def toy(monkeypatch):
    for scale, table in methods.tables((*methods.BASES, TOY)).items():
        monkeypatch.setitem(methods.METHODS, scale, table)
    monkeypatch.setitem(losses.LOSSES, "squared", squared)


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_its_cells_are_beyond_the_paper_and_run_where_they_are_named(toy, scale):
    grid = registry.cells(scale)
    assert not any(cell.method.key == "ipo" for cell in grid), "the grid stays the paper's"
    cells = [cell for cell in registry.cells(scale, extras=True) if cell.method.key == "ipo"]
    assert {cell.model.key for cell in cells} == set(models.MODELS)
    assert all(cell.beyond_paper and cell.extra for cell in cells)
    assert [cell.id for cell in select(scale, "ipo and zephyr and 2off_on")] == ["zephyr-ipo-2off_on"]
    assert select(scale, "") == grid
    assert registry.cell("zephyr-ipo-1on", scale).method.form == "squared"


@pytest.mark.parametrize("scale", ["lab", "paper", "smoke"])
def test_it_is_planned_with_policies_of_its_own_on_the_pairs_of_all(toy, scale, tmp_path):
    cells = select(scale, "pythia and ipo and 2off_on")
    run, other = plan_run(cells[0], 0), plan_run(registry.cell("pythia-dpo-2off_on", scale), 0)
    step, known = run.rounds[0][0], other.rounds[0][0]
    assert step.pairs.fingerprint == known.pairs.fingerprint
    assert step.policy.fingerprint != known.policy.fingerprint
    plan = make_plan(cells, (0,), Store(tmp_path))
    assert step.policy.path in plan.artifacts
    check_devices(plan, _here())


def test_it_trains_a_round(toy, tiny, tmp_path):
    lm = tiny()
    curve = align(lm, data_of(tiny(), pairs_of(8)), replace(TOY, beta=0.5), SETTINGS, tmp_path)
    assert curve[0]["loss"] == pytest.approx(1.0, abs=1e-4), "policy and reference agree: (0 - 1)^2"
    assert len(curve) == 2
    assert distance(weights_of(lm), weights_of(tiny())) > 0


def test_an_unknown_loss_is_refused_before_anything_is_built(toy, tiny, tmp_path, monkeypatch):
    monkeypatch.delitem(losses.LOSSES, "squared")
    words = r"method form 'squared': no such loss; choose one of sigmoid, hinge, slic-hf, slic-norm"
    plan = make_plan(select("smoke", "pythia and ipo and 1on"), (0,), Store(tmp_path))
    with pytest.raises(BadSpec, match=words):
        check_devices(plan, _here())
    with pytest.raises(BadSpec, match=words):
        align(tiny(), data_of(tiny(), pairs_of(4)), replace(DPO, form="squared"), SETTINGS, tmp_path)


def _here():
    from stagealign.execute.executors import Execution

    return Execution(devices=Devices())
