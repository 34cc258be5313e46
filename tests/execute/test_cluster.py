"""A run over a Ray cluster: the bytes of a local run, a node that is lost, a cell that fails, and clear refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.base.kind import Kind
from stagealign.cli.run import run
from stagealign.execute.ray import crew, joining, looking
from stagealign.execute.ray.nodes import Node, check_room
from stagealign.grid import registry
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.needs import GIB, LIGHT, PROCESS, Needs, needs_of
from stagealign.store.artifact import Artifact, Devices
from stagealign.store.folder import Store

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_plantedAAAAAAAAAAAA"
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra cluster)")


def environment(**more):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "factories")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback alone
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": SECRET,
        **more,
    }


@pytest.fixture(scope="module")
def scratch():
    """A folder with a short name: the names of Ray's sockets begin with it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(scratch):
    """The address of a cluster of two nodes, and what gives it orders."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "factories" / "factory_cluster.py")],
        env=environment(RAY_TMPDIR=str(scratch)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def wait_for(word):
        for line in process.stdout:
            if line.startswith(word):
                return line.split()[-1]
        raise AssertionError(f"the cluster ended with {process.wait()} before it said {word!r}")

    def order(*words):
        process.stdin.write(" ".join(map(str, words)) + "\n")
        process.stdin.flush()
        wait_for("done")

    yield wait_for("address"), order
    process.communicate(timeout=60)


def start(folder, *words, cells="1off", **more):
    """The command line with the tiny cells of `benchmarks.faults`, in a process of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.faults.lab", "run", "-k", cells, "--scale", "tiny", *words]
    home = environment(STAGEALIGN_HOME=str(folder / "home"), **more)
    out = (folder / "output").open("w+")
    process = subprocess.Popen(command, cwd=folder, env=home, stdout=out, stderr=subprocess.STDOUT, text=True)
    out.close()
    return process


def end(process, folder):
    """(exit code, what was printed)."""
    return process.wait(timeout=300), (folder / "output").read_text()


def wait_until(found, process, seconds=200):
    """What `found` finds, asked until it is something."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"nothing came; exit code {process.poll()}")


@pytest.fixture(scope="module")
def reference(scratch):
    """The grid as this machine alone builds it."""
    folder = scratch / "local"
    code, out = end(start(folder, "--workers", "2"), folder)
    assert code == 0, out
    return folder


@with_ray
@pytest.mark.slow
def test_nodes_without_a_common_folder_share_a_bucket(cluster, reference, scratch):
    """Each node has a home of its own; the bucket gets the bytes of a run on one machine, the driver no weights."""
    from benchmarks.faults.attempts import content, numbers

    address, _ = cluster
    folder, bucket = scratch / "apart", scratch / "bucket"
    words = ("--executor", "ray", "--address", address)
    code, out = end(start(folder, *words, STAGEALIGN_BUCKET=f"file://{bucket}"), folder)
    assert code == 0, out
    assert content(bucket) == content(reference / "home")
    assert numbers(folder / "results") == numbers(reference / "results")
    assert not list((folder / "home").rglob("*.safetensors"))
    homes = [list(home.rglob("*.safetensors")) for home in scratch.glob("node-*")]
    assert len(homes) >= 2
    assert all(homes), "both nodes built, and fetched what the other had made"
    assert not list(bucket.rglob("*.note"))


@with_ray
@pytest.mark.slow
def test_a_cluster_builds_the_same_bytes_and_survives_failures(cluster, reference, scratch):
    """One grid: the round of one cell fails and stops no other; a node is killed while it trains the other's."""
    from benchmarks.faults.attempts import content, numbers

    address, order = cluster
    folder = scratch / "grid"
    dpo, slic = (next(reference.glob(f"home/tiny/**/{method}/**/policy")) for method in ("dpo", "slichf"))
    fingerprint = json.loads((slic / "record.json").read_text())["fingerprint"]
    blocked = folder / slic.relative_to(reference)
    blocked = blocked.with_name(f"policy.{fingerprint}.part")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder must be")

    process = start(folder, "--executor", "ray", "--address", address)
    holder = (folder / dpo.relative_to(reference)).with_name("policy.holder")
    order("kill", wait_until(lambda: holder.exists() and holder.read_text().partition("\n")[0], process))
    code, out = end(process, folder)
    assert code == 1, out
    assert f"again {dpo.relative_to(reference / 'home')}, by pid " in out
    assert f"failed {slic.relative_to(reference / 'home')}: FileExistsError" in out
    assert SECRET not in out
    built = [line for line in out.splitlines() if line.startswith("built ") and " on " in line]
    assert len(built) == len(list((folder / "home").rglob("record.json")))  # a line an artifact, with its place

    blocked.unlink()
    theirs, ours = content(reference / "home"), content(folder / "home")
    assert ours == {name: made for name, made in theirs.items() if not name.startswith(failed_part(slic, reference))}
    ran, result = numbers(reference / "results"), "zephyr-dpo-1off-seed0.json"
    assert json.loads((folder / "results/tiny" / result).read_text())["state"] == "done"
    failed = json.loads((folder / "results/tiny/zephyr-slichf-1off-seed0.json").read_text())
    assert failed["state"] == "failed"
    assert "FileExistsError" in failed["reason"]
    (folder / "results/tiny/zephyr-slichf-1off-seed0.json").unlink()
    assert numbers(folder / "results") == {result: ran[result]}


def failed_part(policy, reference):
    """How the names begin of all that needs this policy."""
    return str(policy.parent.relative_to(reference / "home"))


@with_ray
@pytest.mark.slow
def test_a_cluster_that_cannot_is_named_before_work(cluster, scratch):
    """Too few cores on any one node; and a node with another stagealign."""
    address, order = cluster
    folder, other = scratch / "refused", scratch / "other"
    words = ("--executor", "ray", "--address", address)
    code, out = end(start(folder, *words, "--devices", "4"), folder)
    assert code == 2, out
    assert "no node of the cluster can build" in out
    assert "/policy: needs 4 core(s) and 4 GiB of memory on one node" in out

    shutil.copytree(ROOT / "stagealign", other / "stagealign", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "stagealign" / "losses.py").open("a", encoding="utf-8") as losses:
        losses.write("# another version\n")
    order("add", other)
    code, out = end(start(folder, *words), folder)
    assert code == 2, out
    assert "stagealign's files is " in out
    assert len([line for line in out.splitlines() if line.startswith("  - ")]) == 1
    assert list((folder / "home").iterdir()) == []


@with_ray
@pytest.mark.slow
def test_a_ray_of_our_own_is_on_loopback_alone_keeps_secrets_and_ends_with_us(scratch):
    import psutil

    folder, logs = scratch / "own", scratch / "logs"
    logs.mkdir()
    process = start(folder, "--executor", "ray", RAY_TMPDIR=str(logs), RAY_ADDRESS="")
    wait_until(lambda: "built " in (folder / "output").read_text(), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in one.name() for one in children)
    listening = {
        one.laddr.ip
        for child in [psutil.Process(process.pid), *children]
        if child.is_running()
        for one in child.net_connections("tcp")
        if one.status == "LISTEN"
    }
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    process.send_signal(signal.SIGTERM)
    code, out = end(process, folder)
    assert code == 143, out
    assert "terminated; all that is built stays; run the same command to continue" in out
    assert "Traceback" not in out
    assert not [child for child in psutil.wait_procs(children, timeout=30)[1] if child.status() != "zombie"]
    files = [path for place in (logs, folder) for path in place.rglob("*") if path.is_file()]
    assert any(path.name.startswith("raylet") for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [path for path in files if path.name == "usage_stats.json" and '"enabled": true' in path.read_text()]


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(joining, "find_spec", lambda name: None)
    with pytest.raises(CannotRun, match=r"pip install 'stagealign\[cluster\]'"), joining.joined("auto"):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no Ray cluster could be joined there .*refused.*ray status"),
        ("ray://me:secret@head:10001", r"ray://\[hidden\]@head:10001: not a node of the cluster"),
        ("head", "give host:port"),
        ("head:99999", "no Ray cluster could be joined there|Name or service"),
    ],
)
def test_an_address_that_cannot_be_reached_is_refused_at_once(address, words, monkeypatch):
    monkeypatch.setattr(joining, "find_spec", lambda name: True)
    monkeypatch.setattr(joining, "REACH", 2.0)
    for name in (*joining.QUIET, joining.LOOPBACK):
        monkeypatch.setenv(name, "0")
    with pytest.raises(CannotRun, match=words), joining.joined(address):
        pass


def test_an_executor_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StagealignError, match=r"--executor 'rays': unknown; .*\bray\b"):
        run("2off_on", "smoke", executor="rays", results=tmp_path)
    with pytest.raises(StagealignError, match="add --executor ray"):
        run("2off_on", "smoke", address="auto", results=tmp_path)


def named(scale, cell, ending):
    run = plan_run(registry.cell(cell, scale), 0)
    return next(one for path, one in run.artifacts.items() if path.endswith(ending))


def test_needs_are_those_of_the_scale_and_its_devices():
    lab, paper = registry.scale("lab"), registry.scale("paper")
    policy, start_, pairs = (named("lab", "zephyr-dpo-1on", name) for name in ("policy", "start", "pairs"))
    assert needs_of(pairs, lab, Devices()) == Needs(1, 0, LIGHT)
    assert needs_of(start_, lab, Devices()).gpus == 0
    assert 2.4 < needs_of(start_, lab, Devices()).memory / GIB < 3.5  # its records have 2.3 to 2.4
    assert needs_of(policy, lab, Devices(2)).cpus == 2

    policy, votes, pairs = (named("paper", "llama3-dpo-1on", name) for name in ("policy", "votes", "prompts"))
    one, eight = needs_of(policy, paper, Devices()), needs_of(policy, paper, Devices(8))
    assert (one.gpus, one.cpus) == (1, 2)
    assert 100 < one.device_memory / GIB < 139
    assert one.memory / GIB == pytest.approx(2 * 8.03e9 * 2 / GIB + PROCESS / GIB, rel=0.05)
    assert (eight.gpus, eight.cpus, eight.device_memory) == (8, 16, one.device_memory / 8)
    whole = needs_of(policy, paper, Devices(8, sharding="replicate"))
    assert whole.device_memory == one.device_memory
    assert needs_of(votes, paper, Devices(8)).gpus == 1
    measured = plan_run(registry.cell("llama3-dpo-1on", "paper"), 0, capability=True).abilities[0]
    assert needs_of(measured, paper, Devices()).gpus == 1
    assert needs_of(pairs, paper, Devices(8)).gpus == 0


def test_a_gpu_that_no_node_has_is_an_error():
    small = Node("a", "one (10.0.0.1)", 16, 1, 64 * GIB, 24.0 * GIB)
    plain = Node("b", "two (10.0.0.2)", 64, 0, 512 * GIB)
    check_room({"light": Needs(1, 0, GIB), "small": Needs(2, 1, GIB, 20.0 * GIB)}, [small, plain])
    with pytest.raises(CannotRun, match=r"big: needs 1 GPU\(s\), 2 core\(s\) and 40 GiB of memory, 127 GiB on its GPU"):
        check_room({"big": Needs(2, 1, 40 * GIB, 127.0 * GIB)}, [small, plain])
    with pytest.raises(CannotRun, match=r"(?s)wide: needs 8 GPU.*one \(10.0.0.1\) \(1 GPU\(s\) of 24 GiB, 16 core"):
        check_room({"wide": Needs(16, 8, GIB), "wider": Needs(16, 8, GIB)}, [small, plain])


def test_what_is_wrong_with_a_node_is_said(tmp_path):
    ours = looking.about_here(str(tmp_path), False, "note", "")
    ours |= {"keys": ["HF_TOKEN"], "store": True}
    assert looking._faults("n", ours, ours, str(tmp_path), True) == []
    theirs = ours | {"store": False, "keys": [], "versions": ours["versions"] | {"torch": "1.0"}}
    found = "\n".join(looking._faults("n", theirs, ours, str(tmp_path), True))
    assert "n: torch is 1.0, here it is" in found
    assert "point STAGEALIGN_HOME to a folder that all nodes share" in found
    assert "HF_TOKEN is set here and not there" in found
    assert "HF_TOKEN" not in "".join(looking._faults("n", theirs, ours, str(tmp_path), False))
    [line] = looking._faults(
        "n", ours | {"store": False, "why": "STAGEALIGN_BUCKET=s3://x: no keys"}, ours, "s3://x", True
    )
    assert line == "n: STAGEALIGN_BUCKET=s3://x: no keys"
    [line] = looking._faults("n", {"absent": "python: No module named 'stagealign'"}, ours, str(tmp_path), True)
    assert "install the same stagealign there" in line


def test_a_store_is_seen_where_the_note_can_be_read(tmp_path):
    for bucket, place in ((False, str(tmp_path)), (True, f"file://{tmp_path}")):
        note = tmp_path / f"note-{bucket}"
        assert not looking.about_here(place, bucket, note.name, "x")["store"]
        note.write_text("x")
        assert looking.about_here(place, bucket, note.name, "x")["store"]
        assert not looking.about_here(place, bucket, note.name, "y")["store"]
    assert "Protocol not known" in looking.about_here("nowhere://x", True, "note", "x")["why"]


def test_a_task_hides_the_secrets_of_its_node(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_TOKEN", SECRET)
    monkeypatch.setenv("STAGEALIGN_HOME", "elsewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(crew, "quiet", lambda threads, log: None)
    told = []
    board = SimpleNamespace(tell=SimpleNamespace(remote=lambda *words: told.append(words)))
    bad = Artifact("bad", Kind("factory_builders:fail", price="free"), {"say": SECRET})
    assert crew.build(bad, Store(tmp_path), Needs(1, 0, GIB), {}, board) == "ValueError: no [NODE_TOKEN] today"
    assert [words[:2] for words in told] == [("bad", "started")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    good = replace(bad, path="good", kind=Kind("factory_builders:write", price="free"))
    assert crew.build(good, Store(tmp_path), Needs(1, 1, GIB), {}, board) is True
    assert crew.build(good, Store(tmp_path), Needs(1, 1, GIB), {}, board) is False
