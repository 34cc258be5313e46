"""The smoke of CI: the whole path from prompts to report, both methods and sources, on Pythia-160m's real shape.

No network: the weights are seeded random ones, so the numbers mean nothing; that they are all there is what counts.
"""

import importlib.util
import math
import os
import resource
import subprocess
import sys
import time

import pytest

from stagealign.grid import registry, select
from stagealign.store.results import read_result, result_path

CELLS = select.select("smoke", "2off_on or 2on_off")
SECRETS = {"HF_TOKEN": "hf_plantedAAAAAAAAAAAA", "STAGEALIGN_JUDGE_KEY": "sk-plantedCCCCCCCCCCCC"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder, the command line in it, and the first run's output and seconds of work."""
    folder = tmp_path_factory.mktemp("smoke")
    # A hub cache of its own: weights that happen to be on this machine would make another run of it.
    environment = {**os.environ, "STAGEALIGN_HOME": str(folder / "home"), "HF_HOME": str(folder / "hub")}
    environment |= {"HF_HUB_OFFLINE": "1", **SECRETS}

    def call(*words, scale=True):
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-c",
            "from stagealign.cli.app import main; main()",
            *words,
            *["--scale", "smoke"] * scale,
        ]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        # On a machine that does other things too, the clock says nothing: what counts is the work of two cores.
        return done.returncode, done.stdout + done.stderr, min(time.monotonic() - started, worked)

    code, out, seconds = call("run", "-k", "2off_on or 2on_off")
    assert code == 0, out
    return folder, call, out, seconds


@pytest.fixture(scope="module")
def results(smoke):
    return [read_result(result_path(smoke[0] / "results", "smoke", cell.id, 0)) for cell in CELLS]


def rungs(result):
    return [(one, rung) for one in result["rounds"] for rung in one["rungs"]]


def test_every_cell_is_done_and_says_what_its_weights_are(smoke, results):
    assert smoke[2].startswith("scale smoke: plumbing check in CI; 4 runs")
    assert {(r["method"]["key"], r["schedule"]) for r in results} == {
        (method, schedule) for method in ("dpo", "slichf") for schedule in ("2off_on", "2on_off")
    }
    for result in results:
        assert result["state"] == "done"
        assert (result["scale"], result["model"]["key"], result["model"]["weights"]) == ("smoke", "pythia", "random")
        assert [rung["state"] for _, rung in rungs(result)] == ["done", "done"]
    assert smoke[3] < 180, "three minutes on two cores"


def test_rounds_are_short_and_start_where_they_must(results):
    """At most ten steps; round 1 starts at ln 2 for DPO and at the hinge's margin 1, as policy and reference agree."""
    at_start = {"sigmoid": math.log(2), "hinge": 1.0}
    for result in results:
        for _, rung in rungs(result):
            curve = rung["training"]["curve"]
            assert [entry["step"] for entry in curve] == list(range(1, len(curve) + 1))
            assert 1 <= len(curve) <= 10
            assert curve[0]["loss"] == pytest.approx(at_start[result["method"]["form"]], abs=1e-4)
            assert all(entry["grad_norm"] > 0 for entry in curve)


def test_every_pair_is_accounted_for(results):
    for result in results:
        for one, rung in rungs(result):
            pairs = one["pairs"]
            assert pairs["pairs"] + sum(pairs["drops"].values()) == registry.scale("smoke").training.pairs
            assert pairs["pairs"] > 0
            forwards = rung["training"]["reference"]
            assert forwards["computed"] + forwards["reused"] == 2 * pairs["pairs"]


def test_every_policy_is_measured(results):
    evaluation = registry.scale("smoke").evaluation
    for result in results:
        policies = [result["start"], *(rung["metrics"] for _, rung in rungs(result))]
        for policy in policies:
            assert set(policy) == {"validation", "test"}
            boundary = policy["test"]["boundary"]
            assert 0 <= boundary["score"] <= 1
            assert boundary["votes_on"] + boundary["votes_off"] == 4 * evaluation.test_prompts
            assert policy["test"]["gold"]["n"] == evaluation.test_prompts
        for _, rung in rungs(result):
            assert rung["kl"]["unit"]
            assert {"validation", "test"} == set(rung["gain"]) == set(rung["clean_gain"])


def test_every_rounds_data_is_described(results):
    """Without an encoder at this scale the embedding's distance is absent and says why; all else has a number."""
    for result in results:
        for one in result["rounds"]:
            data = one["data"]
            assert data["prompts"] + sum(data["drops"].values()) == registry.scale("smoke").training.pairs
            for name, metric in data["metrics"].items():
                assert metric["unit"]
                assert metric["n"] > 0 or metric["reason"]
                assert (metric["value"] is None) == (name == "embedding"), name
            if one["source"] == "off":
                assert data["metrics"]["quality"]["value"] == 50


def test_what_cells_have_in_common_is_built_once(smoke):
    """Two methods and both schedules share the start, its candidates and the reference of round 1."""
    paths = {str(path.parent.relative_to(smoke[0] / "home")) for path in (smoke[0] / "home").rglob("record.json")}
    first = {path for path in paths if path.endswith(("1off/reference", "1on/reference"))}
    assert len(first) == 2
    assert len([path for path in paths if path.endswith("/policy")]) == 2 * (2 + 2)


def test_weights_that_no_round_trains_are_on_the_disk_once(smoke):
    home = smoke[0] / "home"
    files = {path.stat().st_ino: path.stat().st_size for path in home.rglob("*") if path.is_file()}
    assert sum(files.values()) < 1.5e9
    assert not list(home.rglob("*.part"))


def test_a_second_call_builds_nothing(smoke, results):
    code, out, seconds = smoke[1]("run", "-k", "2off_on or 2on_off", "--again")
    assert code == 0, out
    assert "0 to build" in out
    assert "built 0, reused" in out
    assert seconds < 15
    for cell, before in zip(CELLS, results, strict=True):
        after = read_result(result_path(smoke[0] / "results", "smoke", cell.id, 0))
        assert after["start"] == before["start"]
        for (_, old), (_, new) in zip(rungs(before), rungs(after), strict=True):
            assert new["metrics"] == old["metrics"]
            assert new["training"]["curve"] == old["training"]["curve"]


def test_what_stands_in_the_results_is_not_planned_again(smoke):
    """Nothing is built, even with an empty store: results travel, artifacts need not."""
    code, out, _ = smoke[1]("run", "-k", "2off_on or 2on_off or pythia-dpo-1off", "--dry-run")
    assert code == 0, out
    assert "1 runs" in out
    assert "4 more have their results already" in out
    code, out, _ = smoke[1]("run", "-k", "2off_on or 2on_off")
    assert code == 0, out
    assert "nothing" not in out.splitlines()[0]
    assert "0 runs" in out


def test_the_report_is_written_and_current(smoke):
    folder, call, *_ = smoke
    code, out, _ = call("report")
    assert code == 0, out
    assert "Its numbers say nothing about the paper" in (folder / "reports/smoke/README.md").read_text("utf-8")
    code, out, _ = call("report", "--check")
    assert code == 0, out
    page = folder / "reports/smoke/README.md"
    page.write_text(page.read_text("utf-8") + "by hand", encoding="utf-8")
    code, out, _ = call("report", "--check")
    assert code == 1
    assert "smoke/README.md" in out


def test_capability_is_added_where_asked_for_and_stays(smoke):
    """Capability is added to an existing result from its built policies; a later run without the option keeps it."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: `pip install 'stagealign[eval]'`")
    folder, call, *_ = smoke
    path = result_path(folder / "results", "smoke", "pythia-dpo-2off_on", 0)
    before = read_result(path)
    code, out, _ = call("run", "-k", "dpo-2off_on", "--capability")
    assert code == 0, out
    assert "3 to build" in out
    after = read_result(path)
    assert list(after["capability"]) == ["round 1", "round 2", "start"]
    assert all(one["metrics"]["sums acc"]["n"] == 4 for one in after["capability"].values())
    assert after["rounds"] == before["rounds"]
    code, out, _ = call("run", "-k", "dpo-2off_on", "--capability")
    assert "1 more have their results already" in out
    code, out, _ = call("run", "-k", "dpo-2off_on", "--again")
    assert code == 0, out
    assert read_result(path)["capability"] == after["capability"]


def test_no_record_result_report_or_log_holds_a_secret(smoke):
    """No file holds a secret of the environment above. Weights are skipped, as they hold only numbers."""
    folder, _, out, _ = smoke
    assert not any(one in out for one in SECRETS.values())
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert {"workers.log", "record.json", "pythia-dpo-2off_on-seed0.json"} <= {path.name for path in files}
    leaking = [path for path in files if any(one.encode() in path.read_bytes() for one in SECRETS.values())]
    assert not leaking


def test_the_doctor_finds_nothing_to_mend(smoke):
    code, out = smoke[1]("doctor", "--deep", scale=False)[:2]
    assert code == 0, out
    assert "artifacts are as they were written (by content)" in out
