"""Plans of artifacts to build, with reason and cost: states, reasons, totals, and a store of ten thousand artifacts."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from factory_results import fill

from stagealign.base.errors import BadData, UnknownName
from stagealign.base.identity import fingerprint, plain
from stagealign.base.kind import Kind
from stagealign.cli.plan import plan as plan_command
from stagealign.grid import registry, select
from stagealign.pipeline.rounds import plan_run
from stagealign.plan import machine
from stagealign.plan.plan import Wish, _state, make_plan, processor
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.results import result_path, write_result

CELLS = select.select("smoke", "pythia-dpo")
SCALE = registry.scale("smoke")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def look(store, cells=CELLS, seeds=(0,), **more):
    return make_plan(cells, seeds, store, **more)


def lacking(store, cells=CELLS):
    return machine.lacking(look(store, cells), store.home)


def pretend(store, artifact, **changes):
    """Writes the record of the artifact, as its builder would."""
    identity = artifact.identity | changes
    folder = store.folder(artifact)
    folder.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(identity)
    (folder / "record.json").write_text(
        json.dumps({"fingerprint": mark, "identity": plain(identity), "facts": {"revision": "c" * 40}})
    )


def test_it_is_the_plans_artifacts_each_once(store, monkeypatch):
    found = look(store)
    runs = [plan_run(cell, 0).artifacts for cell in CELLS]
    assert [item.artifact.path for item in found.items] == list(
        {path: one for run in runs for path, one in run.items()}
    )
    assert list(found.artifacts) == [item.artifact.path for item in found.items]
    assert found.wanted == sum(map(len, runs))
    assert {item.reason for item in found.items} == {"new"}
    assert len(found.runs) == 6
    shared = next(item for item in found.items if item.artifact.path == "smoke/prompts")
    assert shared.cells == tuple(cell.id for cell in CELLS)
    assert found.unshared_seconds > found.seconds > found.critical_seconds > 0
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 40)
    assert lacking(store) == []


def test_states_and_reasons(store):
    """By hand: one is built, one is of another spec, one was made from another input, the others are not there."""
    items = {item.artifact.path: item.artifact for item in look(store).items}
    ready, other, fed = (items[path] for path in ("smoke/prompts", "smoke/pythia-160m", "smoke/pythia/seed0/start"))
    pretend(store, ready)
    pretend(store, other, params={**other.identity["params"], "seed": 7})
    pretend(store, fed, inputs={"weights": "1" * 16})
    found = {item.artifact.path: item for item in look(store).items}
    assert (found[ready.path].state, found[ready.path].reason) == ("ready", "")
    assert found[other.path].state == "changed"
    assert found[other.path].reason == "changed: params.seed was 7, now 0"
    assert found[fed.path].reason == "input changed: weights"
    assert {item.reason for path, item in found.items() if path not in (ready.path, other.path, fed.path)} == {"new"}
    totals = look(store).totals
    assert totals.ready == 1
    assert totals.to_build == totals.artifacts - 1 == len(found) - 1


def test_runs_whose_results_stand_are_left_out_and_forced_ones_say_so(store):
    first = CELLS[0].id
    found = look(store, stands=lambda run: run.cell.id == first)
    assert (len(found.runs), len(found.standing)) == (5, 1)
    again = look(store, stands=lambda run: run.cell.id == first, wish=Wish(again=True))
    assert (len(again.runs), len(again.standing)) == (6, 0)
    only = {item.artifact.path for item in again.items if item.cells == (first,)}
    assert {item.reason for item in again.items if item.artifact.path not in only} == {"new"}
    assert all("--again" in item.reason for item in again.items if item.artifact.path in only)
    every = look(store, stands=lambda run: True, wish=Wish(again=True))
    assert all(item.reason.startswith("forced") for item in every.items)


def test_totals_are_the_sums_of_the_artifacts_that_would_be_built(store):
    cells = select.select("paper", "zephyr or pythia")
    found = look(store, cells)
    pretend(store, found.items[0].artifact)
    written = look(store, cells).plain([])
    left = [one for one in written["artifacts"] if one["state"] != "ready"]
    assert len(written["artifacts"]) == len(left) + 1
    for name in ("gpu_hours", "disk_gib", "judge_dollars"):
        assert written["totals"][name] == pytest.approx(sum(one[name] for one in left), rel=0.01)
    assert written["totals"]["peak_memory_gib"] == max(one["peak_memory_gib"] for one in left)
    assert {"id", "cells", "state", "reason", "gpu_hours", "peak_memory_gib", "disk_gib", "judge_dollars"} <= left[
        0
    ].keys()
    judged = [one for one in left if one["judge_dollars"]]
    assert {one["kind"] for one in judged} == {"annotations"}
    assert written["processor"] == "h200"


def test_weights_without_a_pin_are_named_until_their_record_knows(store):
    cells = select.select("paper", "zephyr-dpo-1off")
    assert look(store, cells).revisions == {
        "alignment-handbook/zephyr-7b-sft-full": None,
        "llm-blender/PairRM-hf": None,
        "tatsu-lab/alpaca_eval": None,
    }
    weights = next(item.artifact for item in look(store, cells).items if item.artifact.role == "weights")
    pretend(store, weights)
    assert look(store, cells).revisions["alignment-handbook/zephyr-7b-sft-full"] == "c" * 40


def test_what_the_machine_lacks(store, monkeypatch):
    monkeypatch.setattr(machine, "gpu_memory", lambda: 200 * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**60}))
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lacks = lacking(store, select.select("paper", "llama3"))
    assert "a key for the judge gpt-4-1106-preview: set STAGEALIGN_JUDGE_KEY or OPENAI_API_KEY" in lacks
    assert not [line for line in lacks if line.startswith(("a GPU", "GPU", "disk", "access"))]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert any(line.startswith("disk: ") for line in lacking(store, select.select("lab", "zephyr")))


def test_builders_that_are_not_there_are_named():
    made = [
        Artifact(name, Kind("old.name:build", f"stagealign.{name}", price="free"))
        for name in ("train.round:build_policy", "nowhere:build", "train.round:no")
    ]
    assert machine.absent(made) == ["stagealign.nowhere:build", "stagealign.train.round:no"]
    for scale in ("lab", "smoke"):
        artifacts = [a for cell in registry.cells(scale) for a in plan_run(cell, 0).artifacts.values()]
        assert machine.absent(artifacts) == []


def test_processors_by_name():
    assert processor(None, registry.scale("paper")).key == "h200"
    assert processor(None, SCALE).key == "cpu"
    assert processor("A100", SCALE).key == "a100"
    with pytest.raises(UnknownName, match="GPU 'h20': unknown; one of h200"):
        processor("h20", SCALE)


def test_ten_thousand_artifacts_are_looked_at_in_two_seconds(store):
    """Seconds of our own processor; made-up records of the usual size."""
    base = Artifact("x", Kind("stagealign.train:build_policy", price="free"), {"method": "m", "text": "y" * 2000})
    artifacts = [replace(base, path=f"lab/a{i // 100}/b{i}", params={**base.params, "n": i}) for i in range(10_000)]
    for artifact in artifacts:
        pretend(store, artifact)
    start = time.process_time()
    states = {_state(artifact, store, False)[0] for artifact in artifacts}
    ready = sum(store.record(artifact) is not None for artifact in artifacts)
    used = time.process_time() - start
    assert (states, ready) == ({"ready"}, 10_000)
    assert used < 4, f"two looks at each took {used:.1f} s"


def test_the_command_writes_json_and_shows_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    fill(tmp_path, ("zephyr",))
    cells = select.select("lab", "zephyr and dpo")
    target = tmp_path / "plan.json"
    plan_command("zephyr and dpo", seeds=1, results=tmp_path, json_file=str(target))
    out = " ".join(capsys.readouterr().out.split())
    assert "6 runs (cell x seed)" in out, "made-up results have other rungs, so none stands"
    assert "of the time saved" in out
    assert "this machine" in out
    assert json.loads(target.read_text())["totals"]["cpu_seconds"] > 600
    plan_command("zephyr and dpo", seeds=1, results=tmp_path, gpu="h100", json_file="-")
    written = json.loads(capsys.readouterr().out)
    assert written["totals"]["gpu_hours"] > 0 == written["totals"]["cpu_seconds"]
    with pytest.raises(BadData, match="no folder"):
        plan_command("zephyr and dpo", seeds=1, results=tmp_path, json_file=str(tmp_path / "no" / "x.json"))
    run = plan_run(cells[0], 0)
    made = json.loads(result_path(tmp_path, "lab", cells[0].id, 0).read_text())
    del made["seal"]
    whole = made["rounds"][0]["rungs"][0]
    made["rounds"][0]["rungs"] = [whole | {"fingerprint": one} for one in run.rungs]
    result_path(tmp_path, "lab", cells[0].id, 0).unlink()
    write_result(tmp_path, made)
    plan_command("zephyr and dpo", seeds=1, results=tmp_path)
    assert "1 more have their results already" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_it_takes_less_than_a_second_and_no_torch(scale, tmp_path):
    """Seconds of our own processor, the best of a few: a busy machine must not fail it."""
    script = (
        f"import sys, time; start = time.process_time(); sys.argv = ['stagealign', 'plan', '--scale', {scale!r}]\n"
        "from stagealign.cli.app import main\n"
        "try: main()\n"
        "finally: print('used', time.process_time() - start, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "STAGEALIGN_HOME": str(tmp_path)}
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        used, torch = done.stdout.split("used ")[-1].split()
        assert torch == "False"
        if float(used) < 1:
            return
    pytest.fail(f"{used} s")
