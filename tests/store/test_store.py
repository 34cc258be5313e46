"""Each artifact is built once, leaves a record, refuses to be stale, and survives kills and full disks."""

import json
import multiprocessing
import os
import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
from factory_store import make

from stagealign.base.errors import StagealignError, StoreDrift
from stagealign.base.kind import Kind
from stagealign.grid import registry
from stagealign.pipeline import kinds
from stagealign.pipeline import rounds as pipeline
from stagealign.store import folder as store
from stagealign.store.folder import Store
from stagealign.store.locks import held
from stagealign.store.record import differences

BUILDER = Kind("factory_builders:write", price="free")


@pytest.fixture
def home(tmp_path):
    return Store(tmp_path)


def calls(home):
    path = home.home / "calls"
    return path.read_text().split() if path.exists() else []


def test_an_artifact_is_built_once_from_its_inputs(home):
    parent = make("deep/er/parent", say="one")
    child = make("deep/child", inputs=[parent], say="two")
    assert home.record(child) is None
    for artifact in child.lineage().values():
        home.build(artifact)
        home.build(artifact)
    assert (home.folder(child) / "text").read_text() == "one+two"
    assert calls(home) == ["parent", "child"]
    assert sorted(path.name for path in (home.home / "deep").iterdir() if path.suffix != ".lock") == ["child", "er"]


def test_the_record_tells_identity_and_facts(home):
    parent, child = make("parent", say=1), make("child", inputs=[make("parent", say=1)], say=(1, 2))
    home.build(parent)
    record = home.build(child)
    assert record == home.record(child) == json.loads((home.folder(child) / "record.json").read_text())
    assert record["fingerprint"] == child.fingerprint
    assert record["identity"] == {
        "builder": "factory_builders:write",
        "version": 1,
        "params": {"say": [1, 2]},
        "inputs": {"parent": parent.fingerprint},
    }
    assert record["inputs"] == {"parent": "parent"}
    assert {"said", "seconds", "commit", "dirty", "versions", "hardware", "peak_memory_mib", "threads"} <= set(
        record["facts"]
    )
    assert record["facts"]["versions"]["numpy"]


def test_drift_names_the_changed_field(home):
    old = make(method={"beta": 0.1, "form": "hinge"}, layers=[1, 2])
    home.build(old)
    new = make(method={"beta": 0.2, "form": "hinge"}, layers=[1, 2])
    with pytest.raises(StoreDrift) as caught:
        home.build(new)
    message = str(caught.value)
    assert "params.method.beta was 0.1, now 0.2" in message
    assert "form" not in message
    assert f"rm -r {home.folder(old)}" in message
    assert home.record(old), "nothing built is lost"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (make(say=1, more=None), "params.say was None, now 1"),
        (replace(make(), kind=Kind("factory_builders:write", version=2, price="free")), "version was 1, now 2"),
        (
            replace(make(), kind=Kind("factory_builders:fail", price="free")),
            "builder was 'factory_builders:write', now",
        ),
        (make(inputs=[make("b")]), "inputs.b was None, now"),
    ],
)
def test_whatever_differs_is_named(new, words, home):
    home.build(make())
    with pytest.raises(StoreDrift, match=words):
        home.record(new)


def test_a_changed_grandparent_is_drift(home):
    def line(say):
        parent = make("parent", say=say)
        return parent, make("child", inputs=[parent])

    for artifact in line(1):
        home.build(artifact)
    with pytest.raises(StoreDrift, match=r"inputs\.parent was"):
        home.record(line(2)[1])


def test_differences_are_leaves():
    assert list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})) == [
        "a.c was 2, now 3",
        "d was None, now 4",
    ]
    assert list(differences({"a": [1]}, {"a": [1]})) == []


def test_execution_is_not_identity(monkeypatch, tmp_path):
    run = pipeline.plan_run(registry.cell("zephyr-dpo-2off_on"), 1)
    before = {goal.path: goal.fingerprint for goal in run.goals}
    other = replace(kinds.POLICY, place="elsewhere:build", price="free", light=12345.0, trains=False, fetches="x")
    monkeypatch.setattr(pipeline, "POLICY", other)
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    after = pipeline.plan_run(registry.cell("zephyr-dpo-2off_on"), 1)
    assert {goal.path: goal.fingerprint for goal in after.goals} == before
    assert {step.policy.kind.light for step in after.rounds[0]} == {12345.0}
    artifact = make(say=1)
    assert replace(artifact, path="elsewhere", role="policy").fingerprint == artifact.fingerprint
    assert replace(artifact, params={"say": 2}).fingerprint != artifact.fingerprint


@pytest.mark.parametrize("scale", ["lab", "smoke"])
def test_what_determines_a_policy_is_in_its_lineage(scale):
    """A changed seed, method constant, learning rate or decoding changes every policy below it."""
    cell = registry.cells(scale)[0]

    def policies(cell, seed=0):
        return [step.policy.fingerprint for steps in pipeline.plan_run(cell, seed).rounds for step in steps]

    training = cell.scale.training
    changed = [
        replace(cell, method=replace(cell.method, beta=0.5)),
        replace(cell, method=replace(cell.method, form="hinge")),
        replace(cell, checkpoint=replace(cell.checkpoint, source="shape:other")),
        *(
            replace(cell, scale=replace(cell.scale, training=replace(training, **change)))
            for change in (
                {"batch": 2},
                {"max_length": 99},
                {"warmup": 0.3},
                {"trained_layers": 1},
                {"dtype": "float64"},
            )
        ),
    ]
    before = policies(cell)
    assert policies(cell) == before
    assert not set(before) & set(policies(cell, seed=1))
    for one in changed:
        assert not set(before) & set(policies(one))
    on = next(c for c in registry.cells(scale) if c.schedule == "1on")
    shorter = replace(on.scale, decoding=replace(on.scale.decoding, max_new_tokens=5))
    assert not set(policies(on)) & set(policies(replace(on, scale=shorter)))


def build_in_process(home, name, say):
    Store(home).build(make(name, say=say, sleep=0.5))


def test_two_processes_build_one_artifact_once(home):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=build_in_process, args=(home.home, "shared", 1)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert calls(home) == ["shared"]


def test_who_waits_is_told(home):
    told = []
    with ExitStack() as stack:
        stack.enter_context(held(home.home / "a"))

        def waiting(path, who):
            told.append((path, who))
            stack.close()

        home.build(make(), waiting)
    assert told == [("a", f"pid {os.getpid()} on {socket.gethostname()}")]


def exits_halfway(home):
    Store(home).build(make("cut", "exit_halfway", say="whole"))


def test_a_killed_build_is_no_artifact_and_is_taken_up_again(home):
    worker = multiprocessing.get_context("spawn").Process(target=exits_halfway, args=(home.home,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9
    artifact = make("cut", "exit_halfway", say="whole")
    assert home.record(artifact) is None
    assert [path.name for path in home.home.glob("*.part")] == [f"cut.{artifact.fingerprint}.part"]
    home.build(artifact)
    assert (home.folder(artifact) / "text").read_text() == "whole"
    assert not list(home.home.glob("*.part"))


def test_a_folder_without_a_record_is_built_anew(home):
    (home.home / "a").mkdir()
    (home.home / "a" / "text").write_text("of unknown origin")
    home.build(make(say="new"))
    assert (home.home / "a" / "text").read_text() == "new"


@pytest.mark.parametrize("content", [b'{"fingerprint": "12', b"\xff\xfe", b"[]", b"{}", b"null"])
def test_a_damaged_record_is_named_with_the_fix(content, home):
    home.build(make())
    (home.home / "a" / "record.json").write_bytes(content)
    with pytest.raises(StagealignError, match="record") as caught:
        home.build(make())
    assert f"`rm -r {home.home / 'a'}`" in str(caught.value)
    assert str(home.home / "a" / "record.json") in str(caught.value)


@pytest.mark.parametrize("function", ["disk_full", "disk_full_elsewhere"])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(function, home):
    home.build(make("before", say="kept"))
    with pytest.raises(StagealignError) as caught:
        home.build(make("big", function))
    message = str(caught.value)
    assert os.strerror(28) in message
    assert str(home.home / "big") in message
    assert "STAGEALIGN_HOME" in message
    assert "all that is built stays" in message
    assert home.record(make("before", say="kept"))
    assert home.record(make("big", function)) is None


def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(store.Path, "mkdir", refuse)
    with pytest.raises(StagealignError, match="Permission denied; free some space or point STAGEALIGN_HOME"):
        Store(tmp_path).build(make("b"))


def test_other_errors_of_a_builder_come_through(home):
    with pytest.raises(ValueError, match="no luck today"):
        home.build(make("a", "fail", say="luck"))
    assert home.record(make("a", "fail", say="luck")) is None


def test_values_without_a_stable_form_are_refused_before_anything_is_built(home):
    with pytest.raises(TypeError, match="stable form"):
        home.build(make(say={1, 2}))
    assert calls(home) == []


def test_the_home_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "x"))
    assert Store().home == tmp_path / "x"
    monkeypatch.setenv("STAGEALIGN_HOME", "~/y")
    assert str(Store().home).startswith(os.path.expanduser("~"))
    monkeypatch.delenv("STAGEALIGN_HOME")
    assert Store().home.parts[-2:] == (".cache", "stagealign")
