"""The attacks of `benchmarks.faults` in short: kills, full disks, bad files, bad neighbours, and their table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.shapes import NUMBER, SHARE, TEXT, WHOLE, Map, Or, misfit
from stagealign.report.pages.faults import faults, readme_lines
from stagealign.store import results as reading

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "factories")])}

# A command line in miniature: the real plan execution and entry point, with builders that need no library.
SCRIPT = """
import sys
from pathlib import Path
import factory_builders
from stagealign.cli import app as cli
from stagealign.execute import processes as execute
from stagealign.grid import registry
from stagealign.plan import flops
from stagealign.plan.plan import NEW, READY, Plan, PricedArtifact
from stagealign.plan.price import CostEstimate
from stagealign.base.kind import Kind
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
execute._prepare = factory_builders.prepare

def make(path, *inputs):
    params = {"say": path, "sleep": 0.15}
    return Artifact(path, Kind("factory_builders:write", price="free"), params, {one.path: one for one in inputs})

@cli.app.command("chain")
def chain(home: str) -> None:
    store, line = Store(Path(home)), [make("a0")]
    for number in range(1, 6):
        line.append(make(f"a{number}", line[-1]))
    scale = registry.scale("smoke")
    states = [READY if store.record(one) else NEW for one in line]
    items = [PricedArtifact(one, scale, (), state, "", CostEstimate(), 0.0) for one, state in zip(line, states)]
    plan = Plan(scale, (), (), tuple(items), flops.CPU, len(line), 0.0)
    crew = execute.Processes(store, 2)
    done = execute.execute(plan, store, crew, lambda event, artifact, _: print(event, artifact.path, flush=True))
    print("done", len(done.built), flush=True)

if __name__ == "__main__":
    cli.main()
"""


@pytest.fixture
def chain(tmp_path):
    script = tmp_path / "chain.py"
    script.write_text(SCRIPT)

    def start(home):
        command = [sys.executable, str(script), "chain", str(home)]
        return subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def wait_for(process, word):
    """Reads until a line holds the word; gives what was read."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            break
    return "".join(lines)


def test_killed_again_and_again_it_builds_each_artifact_once_and_whole(chain, tmp_path):
    home, chance, known = tmp_path / "home", random.Random(7), {}
    for number in range(40):
        process = chain(home)
        if number < 4:
            out = wait_for(process, "built") if number else wait_for(process, "started")
            time.sleep(chance.uniform(0, 0.1))
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        out = process.communicate(timeout=120)[0]
        records = {path: path.stat().st_mtime_ns for path in home.rglob("record.json") if ".part" not in str(path)}
        assert all(records[path] == made for path, made in known.items()), "built again"
        known = records
        if process.returncode == 0:
            break
    assert process.returncode == 0, out
    assert (home / "a5" / "text").read_text() == "a0+a1+a2+a3+a4+a5"
    assert not list(home.rglob("*.part"))
    assert not list(home.rglob("*.holder"))


def test_workers_end_with_the_process_that_started_them(chain, tmp_path):
    process = chain(tmp_path / "home")
    wait_for(process, "started")
    children = [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if (path / "stat").exists() and process.pid == _parent(path)
    ]
    process.kill()
    process.communicate()
    assert children
    deadline = time.monotonic() + 20
    while any(_lives(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if _lives(pid)]


def _parent(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def _lives(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_with_its_code_and_a_message(number, code, word, chain, tmp_path):
    process = chain(tmp_path / "home")
    wait_for(process, "built")
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == code, out
    assert f"{word}; all that is built stays; run the same command to continue" in out
    assert "Traceback" not in out
    assert "done 6" not in out


SHORT = {
    "killing": ["--kills", "2", "--signals", "1"],
    "together": ["--processes", "3"],
    "same": [],
    "rot": ["--harms", "1"],
    "load": ["--seeds", "1", "--results", "24"],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", SHORT)
def test_a_lab_survives(part, tmp_path):
    """Few of each: kills, signals, a small disk, a read-only store, another clock, three at once, damaged files."""
    command = [sys.executable, "-m", "benchmarks.faults", "--part", part, *SHORT[part], "--short"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
    assert rows
    for row in rows:
        assert row["survived"] == row["times"], row
        assert row["times"] or row["found"].startswith("skipped"), row


def test_bad_files_are_refused_or_counted(tmp_path):
    from benchmarks.faults import data

    tally = data.Tally()
    data.tables(tmp_path, 300, None, tally)
    data.extremes(tmp_path, tally, large=500)
    assert not tally.wrong
    assert sum(tally.counts.values()) >= 300


def test_bad_results_are_damaged_ones_and_never_a_traceback(tmp_path):
    from factory_results import result

    from benchmarks.faults import data

    tally = data.Tally()
    data.results(tmp_path, 60, 3, tally, data._small(result("zephyr-dpo-2off_on")))
    assert not tally.wrong
    assert tally.counts["results", "refused"] > 5


@pytest.mark.parametrize("kind", ["Judge", "Policy", "Alpaca"])
def test_bad_neighbours_lose_nothing_that_was_answered(kind, tmp_path, monkeypatch):
    pytest.importorskip("httpx")
    pytest.importorskip("tenacity")
    if kind == "Alpaca":
        pytest.importorskip("alpaca_eval")
    from benchmarks.faults import neighbours

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path))
    with neighbours.hurried():
        for tried, _, wrong in neighbours.scenarios(lambda name: getattr(neighbours, kind)(tmp_path / name)):
            assert not wrong, tried
        if kind == "Alpaca":
            assert not neighbours.spending(tmp_path / "spending")[2]


ROW = {"tried": "a kill", "times": 3, "survived": 3, "found": "byte for byte", "wrong": []}


def test_the_table_of_attacks(tmp_path):
    assert faults(tmp_path) is None
    folder = tmp_path / "faults"
    folder.mkdir()
    bad = ROW | {"survived": 2, "wrong": ["<b>one</b>"]}
    made = {"part": "killing", "title": "Killed", "seconds": 3, "rows": [ROW, bad]}
    (folder / "killing.json").write_text(json.dumps(made))
    (folder / "data.json").write_text('{"rows": 3}')
    table = faults(tmp_path)
    assert [row.state for row in table.rows] == ["failed", "done", "failed"]
    assert "python -m benchmarks.faults --part data" in table.rows[0].cells[1]
    assert table.rows[1].cells == ("Killed", "a kill", "3", "3", "byte for byte")
    assert "1 of 3 survived" in table.note
    lines = readme_lines(tmp_path)
    assert lines[3] == "| Killed | 2 | 6 | 5 |"
    assert "| data | damaged file: " in lines[2]
    (folder / "killing.json").write_text(json.dumps(made | {"rows": [ROW]}))
    assert readme_lines(tmp_path)[3] == "| Killed | 1 | 3 | all |"
    assert readme_lines(tmp_path / "none") == ["Not measured yet: `python -m benchmarks.faults`."]


@pytest.mark.parametrize(
    ("value", "shape", "wanted"),
    [
        ({"a": 1}, {"a": WHOLE}, None),
        ({"a": 1.5, "b": None}, {"a": NUMBER, "b": Or(TEXT), "c?": TEXT}, None),
        ({}, {"a": WHOLE}, "a is missing"),
        ({"a": [1, "x"]}, {"a": [WHOLE]}, "a.1 is text, a whole number expected"),
        ({"a": [1, 2, 3]}, {"a": [NUMBER, NUMBER]}, "a is a list, a list of 2 expected"),
        ({"a": {"k": True}}, {"a": Map(NUMBER)}, "a.k is true or false, a finite number expected"),
        ({"a": float("nan")}, {"a": NUMBER}, "a is nan, a finite number expected"),
        ({"a": 1, "b": 0.25}, {"a": SHARE, "b": SHARE}, None),
        ({"a": 1.5}, {"a": SHARE}, "a is 1.5, a share from 0 to 1 expected"),
        ({"a": 10**400}, {"a": NUMBER}, "a is a number, a finite number expected"),
        ([], {"a": WHOLE}, "the whole is a list, an object expected"),
    ],
)
def test_the_first_misfit_is_named(value, shape, wanted):
    assert misfit(value, shape) == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["rounds"][0]["rungs"][0].pop("metrics"), r"rounds.0.rungs.0.metrics is missing"),
        (lambda r: r.update(state="perhaps"), "state is none of done, failed, skipped"),
        (lambda r: r.update(seed="0"), "seed is text, a whole number expected"),
    ],
)
def test_a_result_of_another_shape_is_damaged_and_says_where(change, words, tmp_path):
    from factory_results import result

    made = result("zephyr-dpo-1off")
    change(made)
    path = reading.result_path(tmp_path, "lab", made["cell"], 0)
    path.parent.mkdir()
    path.write_text(json.dumps(made))
    with pytest.raises(BadData, match=words) as caught:
        reading.read_result(path)
    assert "stagealign run --scale lab -k zephyr-dpo-1off" in str(caught.value)
    assert isinstance(caught.value, StagealignError)
