"""Execution: parents first, a failure stops what needs it and nothing else, an interrupt loses nothing."""

from concurrent.futures import Future

import pytest

from stagealign.base.errors import StagealignError
from stagealign.base.kind import Kind
from stagealign.execute import processes as execution
from stagealign.execute.processes import Processes, execute, worker_count
from stagealign.grid import registry
from stagealign.plan import flops
from stagealign.plan.plan import NEW, READY, Plan, PricedArtifact
from stagealign.plan.price import estimate
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store


@pytest.fixture(autouse=True)
def light_workers(monkeypatch):
    import factory_builders

    monkeypatch.setattr(execution, "_prepare", factory_builders.prepare)


def quiet(*_):
    pass


def make(path, *inputs, function="write", **params):
    return Artifact(path, Kind(f"factory_builders:{function}", price="free"), params, {one.path: one for one in inputs})


def plan_of(*artifacts, ready=()):
    scale = registry.scale("smoke")
    items = tuple(
        PricedArtifact(one, scale, (), READY if one.path in ready else NEW, "", estimate(one, scale), 0.0)
        for one in artifacts
    )
    return Plan(scale, (), (), items, flops.CPU, len(items), 0.0)


def built(plan, home, count=1, heard=quiet):
    """The outcome of a plan on `count` processes."""
    store = Store(home)
    return execute(plan, store, Processes(store, count), heard)


def test_parents_are_built_before_what_is_made_of_them(tmp_path):
    root = make("root", say="r")
    left, right = make("left", root, say="l"), make("right", root, say="i", sleep=0.2)
    top = make("top", left, right, say="t")
    heard = []
    plan = plan_of(root, left, right, top)
    outcome = built(plan, tmp_path, 2, lambda event, artifact, _: heard.append((event, artifact.path)))
    assert outcome.built == {"root", "left", "right", "top"}
    assert not outcome.failed
    for child, parents in (("left", ["root"]), ("right", ["root"]), ("top", ["left", "right"])):
        assert all(heard.index(("built", parent)) < heard.index(("started", child)) for parent in parents)
    assert (tmp_path / "top" / "text").read_text() == "r+l+r+i+t"


def test_a_failure_stops_only_what_needs_it(tmp_path):
    good, bad = make("good", say="g"), make("bad", function="fail", say="luck")
    child, grandchild = make("child", bad, good), make("grandchild", make("child", bad, good))
    other = make("other", good, say="o")
    heard = []
    plan = plan_of(good, bad, child, grandchild, other)
    outcome = built(plan, tmp_path, 1, lambda event, artifact, _: heard.append((event, artifact.path)))
    assert outcome.built == {"good", "other"}
    assert outcome.failed == {
        "bad": "ValueError: no luck today",
        "child": "it needs bad, which failed: ValueError: no luck today",
        "grandchild": "it needs bad, which failed: ValueError: no luck today",
    }
    assert outcome.stopped == {"child": "bad", "grandchild": "bad"}
    assert ("failed", "bad") in heard
    assert not {path for event, path in heard if event == "started"} & {"child", "grandchild"}


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    first, second = make("first", say=1), make("second", make("first", say=1), say=2, sleep=30)

    def interrupt(event, artifact, outcome):
        if (event, artifact.path) == ("started", "second"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(plan_of(first, second), tmp_path, 1, interrupt)
    assert Store(tmp_path).record(first)
    assert Store(tmp_path).record(second) is None


def test_a_killed_worker_is_a_clear_error(tmp_path):
    first, killed = make("first", say=1), make("killed", make("first", say=1), function="exit_halfway")
    with pytest.raises(StagealignError, match=r"worker process was killed.*--workers 1.*all that is built stays"):
        built(plan_of(first, killed), tmp_path)
    assert Store(tmp_path).record(first)
    outcome = built(plan_of(first, killed, ready=["first"]), tmp_path)
    assert outcome.built == {"killed"}


def test_nothing_missing_starts_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "ProcessPoolExecutor", None)
    one = make("one")
    assert built(plan_of(one, ready=["one"]), tmp_path).built == set()


class Elsewhere:
    """A crew that is not of this machine: it builds at once, says that it began twice, and fails in words."""

    size = slots = 9
    about = "elsewhere"

    def __init__(self, store):
        self.store, self.said, self.ended = store, [], None

    def submit(self, artifact):
        future = Future()
        self.said += [(artifact.path, "started", "pid 1 on a"), (artifact.path, "started", "pid 2 on b")]
        self.said += [(artifact.path, "waiting", "pid 3 on c"), ("unknown", "started", "pid 4 on d")]
        bad = "fail" in artifact.kind.function
        future.set_result("ValueError: no luck" if bad else self.store.obtain(artifact)[1])
        return future

    def news(self):
        said, self.said = self.said, []
        yield from said

    def end(self, at_once):
        self.ended = at_once


def test_another_crew_is_heard_as_the_workers_of_this_machine_are(tmp_path):
    root, bad = make("root", say="r"), make("bad", function="fail")
    store, heard = Store(tmp_path), []

    def listen(event, artifact, outcome):
        heard.append((event, artifact.path, outcome.places.get(artifact.path), outcome.waiting.get(artifact.path)))

    crew = Elsewhere(store)
    outcome = execute(plan_of(root, bad, make("child", bad)), store, crew, listen)
    assert [one for one in heard if one[1] == "root"] == [
        ("started", "root", "pid 1 on a", None),
        ("again", "root", "pid 2 on b", None),
        ("waiting", "root", "pid 2 on b", "pid 3 on c"),
        ("built", "root", "pid 2 on b", None),
    ]
    assert outcome.failed == {"bad": "ValueError: no luck", "child": "it needs bad, which failed: ValueError: no luck"}
    assert crew.ended is False
    assert outcome.places == {}


def test_progress_names_each_artifact_and_its_place(tmp_path, monkeypatch):
    from rich.console import Console

    from stagealign.cli import progress as room

    terminal = Console(force_terminal=True, width=100, record=True, file=(tmp_path / "terminal").open("w"))
    monkeypatch.setattr(room, "console", terminal)
    one, two = make("lab/[red]one"), make("lab/two")
    with terminal.file, room.progress(plan_of(one, two), 2, lines=True) as progress:
        progress.heard("started", one, "pid 1 on a")
        progress.heard("started", two, "pid 2 on b")
        progress.heard("again", two, "pid 3 on c")
        progress.heard("built", one, "pid 1 on a")
        terminal.print(*progress.bar.get_renderables())
        progress.heard("failed", two, "pid 3 on c")
    said = terminal.export_text()
    assert "again lab/two, by pid 3 on c: the process that built it was lost" in said
    assert "built lab/[red]one (0 s left; pid 1 on a)" in said
    assert "  lab/two  pid 3 on c  0 s" in said


def test_workers_are_no_more_than_cores_work_and_wish(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    plan = plan_of(*(make(f"a{number}") for number in range(6)))
    assert worker_count(plan, None) == 4
    assert worker_count(plan, 2) == 2
    assert worker_count(plan, 9) == 4
    assert worker_count(plan_of(make("a")), None) == 1
    assert worker_count(plan_of(make("a"), ready=["a"]), None) == 1
