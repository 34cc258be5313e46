"""A bucket behind the store: machines without a common folder share complete artifacts."""

import errno
import json
import os
import pickle

import pytest

from stagealign.base.errors import CannotRun, Damaged, StagealignError, StoreDrift
from stagealign.base.kind import Kind
from stagealign.execute.processes import Processes, execute
from stagealign.grid import select
from stagealign.pipeline.result import result
from stagealign.plan.plan import make_plan
from stagealign.store.artifact import Artifact
from stagealign.store.bucket import BUCKET, Bucketed, opened
from stagealign.store.checksums import sealed
from stagealign.store.folder import Store

LEAF = Artifact("made/leaf", Kind("factory_builders:write", price="free"), {"say": "leaf"})
TREE = Artifact("made/tree", Kind("factory_builders:write", price="free"), {"say": "tree"}, {"leaf": LEAF})


@pytest.fixture
def shared(tmp_path):
    """Two machines' stores, with one bucket."""
    url = f"file://{tmp_path / 'bucket'}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return Bucketed(url, tmp_path / "one"), Bucketed(url, tmp_path / "two"), tmp_path / "bucket"


def test_what_one_machine_built_another_reuses(shared):
    one, two, there = shared
    record, built = one.obtain(LEAF)
    assert built
    two.forget(LEAF)
    assert two.obtain(LEAF) == (record, False)
    assert not two.folder(LEAF).exists(), "nothing is fetched before it is read"
    assert one.record(TREE) is None
    assert two.obtain(TREE)[1]
    assert two.folder(LEAF).is_dir(), "the input was"
    assert one.record(TREE) is None, "looked at once, until it is told to look again"
    one.forget(TREE)
    assert one.record(TREE) == two.record(TREE)
    for name in ("leaf", "tree"):
        assert sorted(path.name for path in (there / "made" / name).iterdir()) == ["record.json", "text"]


def test_a_file_is_fetched_alone_and_once(shared, monkeypatch):
    one, two, _ = shared
    one.obtain(LEAF)
    path = two.file(LEAF, "text")
    assert path.read_text() == "leaf"
    assert not two.folder(LEAF).exists()
    monkeypatch.setattr(type(two._bucket[0]), "get_file", lambda *_: pytest.fail("fetched again"))
    assert two.file(LEAF, "text") == path
    assert one.file(LEAF, "text") == one.folder(LEAF) / "text"


def test_what_was_not_sent_whole_is_sent_again(shared, monkeypatch):
    """Killed between files and record: the artifact is in the folder, and not in the bucket."""
    one, two, _ = shared
    monkeypatch.setattr(type(one._bucket[0]), "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(CannotRun, match=r"STAGEALIGN_BUCKET=file://.*: OSError: cut"):
        one.obtain(LEAF)
    monkeypatch.undo()
    assert two.record(LEAF) is None
    one.forget(LEAF)
    assert one.obtain(LEAF)[1] is False, "built once"
    two.forget(LEAF)
    assert two.record(LEAF) is not None


def test_what_was_built_before_the_bucket_is_sent_by_a_plan(shared, tmp_path):
    """The artifact is built on this machine and must be sent for the others: a plan counts it, nothing is built."""
    alone, two = Store(tmp_path / "one"), shared[1]
    cells = select.select("smoke", "pythia-dpo-1off")
    first = make_plan(cells, (0,), alone).missing[0]
    alone.build(first)
    one = shared[0]
    assert first in make_plan(cells, (0,), one).missing
    assert one.obtain(first)[1] is False
    one.forget(first)
    assert first not in make_plan(cells, (0,), one).missing
    assert two.record(first) == alone.record(first)


def test_of_two_that_built_the_same_the_first_that_sent_counts(shared, monkeypatch):
    one, two, _ = shared
    made = []

    def late(artifact, record):
        raise AssertionError("sent over what is there")

    def build_meanwhile(self, artifact, waiting=None):
        found = original(self, artifact, waiting)
        if self is two and not made:
            made.append(one.obtain(artifact))
        return found

    original = Store.obtain
    monkeypatch.setattr(Store, "obtain", build_meanwhile)
    monkeypatch.setattr(two, "_send", late)
    record, built = two.obtain(LEAF)
    monkeypatch.undo()
    assert built
    assert record == made[0][0] == one.record(LEAF)
    assert not two.folder(LEAF).exists() or two.record(LEAF) == record
    assert two.obtain(TREE)[0]["facts"]["said"] == "tree"


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_record_that_names_a_file_outside_is_refused(shared, tmp_path, name):
    one, two, there = shared
    one.obtain(LEAF)
    file = there / "made/leaf/record.json"
    record = json.loads(file.read_text())
    record["files"][name] = record["files"]["text"]
    file.write_text(json.dumps(sealed(record)))
    (there / "made/outside").write_text("leaf")
    with pytest.raises(Damaged, match=r"bucket/made/leaf: its record names '.*outside', outside of the folder"):
        two.obtain(TREE)
    assert not list((tmp_path / "two").rglob("outside*"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_of_the_bucket_is_never_built_from(shared, harm):
    one, two, there = shared
    one.obtain(LEAF)
    file = there / "made/leaf/text"
    {"flip": lambda: file.write_text("lead"), "cut": lambda: file.write_text("lea"), "remove": file.unlink}[harm]()
    with pytest.raises(Damaged, match=r"bucket/made/leaf: .*text.*remove it there to rebuild it"):
        two.obtain(TREE)
    with pytest.raises(Damaged, match="made/leaf"):
        two.file(LEAF, "text")
    assert not two.folder(LEAF).exists()
    file.write_text("leaf")
    assert two.obtain(TREE)[1]


def test_a_damaged_or_strange_record_is_named(shared):
    one, two, there = shared
    one.obtain(LEAF)
    other = Artifact(LEAF.path, LEAF.kind, {"say": "other"})
    with pytest.raises(StoreDrift, match=r"bucket/made/leaf: built from another spec: params.say was 'leaf'"):
        two.record(other)
    assert two.changes(other) == ["params.say was 'leaf', now 'other'"]
    assert two.changes(LEAF) == []
    assert two.changes(TREE) is None
    file = there / "made/leaf/record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": {}}))
    two.forget(LEAF)
    with pytest.raises(Damaged, match=r"bucket/made/leaf/record.json: damaged record .*remove .*bucket/made/leaf to"):
        two.record(LEAF)


def test_a_whole_cell_over_two_machines(shared, tmp_path):
    """One plans and builds; the other has nothing to build, reads the same result, and fetched no weights for it."""
    one, two, _ = shared
    cells = select.select("smoke", "pythia-dpo-1off")
    plan = make_plan(cells, (0,), one)
    outcome = execute(plan, one, Processes(one, 1), lambda *_: None)
    assert not outcome.failed
    again = make_plan(cells, (0,), two)
    assert not again.missing
    assert result(again.runs[0], two) == result(plan.runs[0], one)
    assert not list((tmp_path / "two").rglob("*.safetensors"))
    assert again.totals.to_build == 0
    policy = again.runs[0].rounds[0][0].policy
    assert sorted(path.name for path in two.bring(policy).iterdir()) == sorted(
        path.name for path in one.folder(policy).iterdir()
    )


def test_what_is_nowhere_cannot_be_brought(shared):
    with pytest.raises(StagealignError, match=r"made/leaf: neither in .*one nor in file://"):
        shared[0].bring(LEAF)


def test_a_store_travels_without_what_it_has_seen(shared):
    one, two, _ = shared
    assert two.record(LEAF) is None
    one.obtain(LEAF)
    assert two.record(LEAF) is None
    assert pickle.loads(pickle.dumps(two)).record(LEAF) is not None


def test_the_variable_names_it_and_mistakes_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv(BUCKET, raising=False)
    assert type(opened()) is Store
    monkeypatch.setenv(BUCKET, f"file://{tmp_path}/bucket/")
    assert opened().place == f"file://{tmp_path}/bucket"
    for url, words in (
        ("nowhere://x", "ValueError: Protocol not known: nowhere"),
        ("s3://me:hunter2hunter2@bucket/x", r"s3://\[hidden\]@bucket/x: ImportError: Install s3fs"),
    ):
        monkeypatch.setenv(BUCKET, url)
        with pytest.raises(CannotRun, match=words):
            opened()


def test_notes_come_and_go(shared):
    one, two, there = shared
    assert two.note("a.note") is None
    one.leave("a.note", "text")
    assert two.note("a.note") == "text"
    one.leave("a.note", "")
    assert two.note("a.note") is None
    assert not list(there.iterdir())


def test_what_may_not_be_read_is_an_error_and_never_taken_for_absent(shared, monkeypatch):
    one, *_ = shared
    refused = PermissionError("not yours")
    monkeypatch.setattr(type(one._bucket[0]), "cat", lambda self, names, on_error: dict.fromkeys(names, refused))
    with pytest.raises(CannotRun, match="PermissionError: not yours; check the URL"):
        one.record(LEAF)


def test_a_full_disk_here_is_not_the_buckets_fault(shared, monkeypatch):
    one, two, _ = shared
    one.obtain(LEAF)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")

    monkeypatch.setattr(type(two._bucket[0]), "get_file", full)
    with pytest.raises(StagealignError, match="here: No space left on device; free some space") as caught:
        two.obtain(TREE)
    assert "URL" not in str(caught.value)


def test_what_nobody_could_check_is_not_sent(shared):
    one, two, _ = shared
    Store(one.home).build(LEAF)
    file = one.folder(LEAF) / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in record.items() if name not in ("files", "seal")}))
    with pytest.raises(
        StagealignError, match=r"made/leaf: its old record lists no files to check.*`rm -r .*made/leaf`"
    ):
        one.obtain(LEAF)
    assert two.record(LEAF) is None


def test_a_file_that_no_record_names_is_looked_for_here(shared):
    one, two, _ = shared
    one.obtain(LEAF)
    assert two.file(LEAF, "other") == two.folder(LEAF) / "other"
