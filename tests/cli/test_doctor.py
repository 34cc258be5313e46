"""The doctor finds what was harmed, says what to do, and finds nothing in a store that is well."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from factory_results import fill, result
from factory_store import cut, flip, make

from stagealign.base.kind import Kind
from stagealign.boundary.meter import samples_at
from stagealign.cli import app as cli
from stagealign.cli import checkup
from stagealign.cli.checkup import kept_findings, result_findings, store_findings
from stagealign.grid.samplers import OWN_VERSION, RENDERING_VERSION
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.kept import Kept
from stagealign.store.record import RECORD
from stagealign.store.results import write_result


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(checkup, "planned", dict)
    store = Store(tmp_path)
    for name in ("deep/one", "two", "three"):
        store.build(make(name, say="a text"))
    return store


def states(found):
    return sorted((one.state, one.what) for one in found)


def test_a_store_that_is_well(home):
    for deep in (False, True):
        ((state, what),) = states(store_findings(home, deep))
        assert state == "ok"
        assert what.startswith("3 artifacts are as they were written")


def test_each_harm_is_one_finding_with_what_to_do(home):
    flip(home.home / "deep/one/text")
    cut(home.home / "two/text")
    flip(home.home / "three" / RECORD, 40)
    (home.home / "stray").mkdir()
    (home.home / "stray" / "x").write_text("?")
    (home.home / "cut.0123.part").mkdir()
    (home.home / "cut.0123.part" / "half").write_text("?")
    wrong = [one for one in store_findings(home, True) if one.state == "wrong"]
    assert len(wrong) == 4
    for name in ("deep/one", "two", "three", "stray"):
        assert [one.do for one in wrong if name in one.what] == [f"`rm -r {home.home / name}`"]
    (part,) = (one for one in store_findings(home, True) if one.state == "note")
    assert "left over" in part.what
    assert sum(one.state == "wrong" for one in store_findings(home, False)) == 3, "a flipped byte shows with --deep"


def test_a_part_in_work_is_told_from_one_left_over(home):
    from filelock import FileLock

    (home.home / "now.0123.part").mkdir()
    (home.home / "now.0123.part" / "half").write_text("?")
    with FileLock(home.home / "now.lock"):
        code = "from stagealign.cli.checkup import _part; from pathlib import Path; import sys; p = Path(sys.argv[1]); "
        code += "print(_part(p, 'now').what)"
        import subprocess

        said = subprocess.run(
            [sys.executable, "-c", code, str(home.home / "now.0123.part")], capture_output=True, text=True, check=True
        ).stdout
    assert "being built now" in said


def test_drift_and_another_parent(home, monkeypatch):
    child = make("child", inputs=[make("two", say="a text")])
    home.build(child)
    monkeypatch.setattr(
        checkup, "planned", lambda: {"three": {"0" * 16}, "two": {make("two", say="a text").fingerprint}}
    )
    wrong = [one for one in store_findings(home, False) if one.state == "wrong"]
    assert [one.what for one in wrong] == ["three: built from another spec than the registry has now"]
    import shutil

    shutil.rmtree(home.home / "two")
    home.build(Artifact("two", Kind("factory_builders:write", price="free"), {"say": "other"}))
    assert any("built from another two" in one.what for one in store_findings(home, False))


def test_what_was_built_before_is_counted_and_strangers_are_named(home):
    path = home.home / "two" / RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: one for key, one in record.items() if key not in ("files", "seal")}))
    (home.home / "three" / "adapter_config.json").write_text("{}")
    notes = [one.what for one in store_findings(home, True) if one.state == "note"]
    assert any("1 artifacts have no list of files: not checked" in one for one in notes)
    assert any("three: files that its builder did not write: adapter_config.json" in one for one in notes)


def test_kept_rows(tmp_path):
    kept = samples_at(tmp_path, {"weights": "a", "rendering": RENDERING_VERSION})
    path = next(tmp_path.glob("meter/*/candidates.jsonl"))
    for key in "ab":
        kept.add({"key": key, "tokens": 18})
    assert [one.state for one in kept_findings(tmp_path)] == ["ok"]
    path.write_bytes(path.read_bytes().replace(b"18", b"19", 1))
    (found,) = kept_findings(tmp_path)
    assert (found.state, found.what) == ("wrong", f"{path.relative_to(tmp_path)}: 1 of 2 lines are damaged")


@pytest.mark.parametrize(
    "identity",
    [
        None,
        {"weights": "a"},
        {"weights": "a", "rendering": RENDERING_VERSION - 1},
        {"weights": "a", "rendering": RENDERING_VERSION, "sampler": [OWN_VERSION - 1, "fast"]},
    ],
)
def test_samples_of_earlier_versions_are_counted_and_stay(identity, tmp_path):
    samples_at(tmp_path, {"weights": "new", "rendering": RENDERING_VERSION, "sampler": [OWN_VERSION, "fast"]})
    if identity is None:  # of before identities were written beside samples
        Kept(tmp_path / "meter" / "old" / "candidates.jsonl").add({"key": "a"})
    else:
        samples_at(tmp_path, identity).add({"key": "a"})
    (note,) = [finding for finding in kept_findings(tmp_path) if finding.state == "note"]
    assert "samples of 1 policies" in note.what
    (old,) = shlex.split(note.do.partition("`")[2].partition("`")[0])[2:]
    assert (Path(old) / "candidates.jsonl").stat().st_size > 0, "nothing is removed by looking"


def test_results(tmp_path):
    fill(tmp_path, seeds=1)
    before = [one.state for one in result_findings(tmp_path)]
    assert "wrong" not in before
    path = write_result(tmp_path, result("zephyr-dpo-1off"))
    path.write_text(path.read_text()[:-200])
    other = write_result(tmp_path, result("zephyr-dpo-1on"))
    other.write_text(json.dumps(result("zephyr-dpo-2on_on")))
    wrong = [one for one in result_findings(tmp_path) if one.state == "wrong"]
    assert len(wrong) == 2
    assert "damaged" in wrong[0].what
    assert "another run than its name says" in wrong[1].what
    for one in wrong:
        assert re.search("stagealign run .*-k zephyr-dpo-", one.do)


def test_the_command_says_what_to_do_and_ends_with_1(home, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("STAGEALIGN_HOME", str(home.home))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["stagealign", "doctor", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, capsys.readouterr().out

    code, out = call()
    assert "torch" in out
    assert (code, "all is well" in out) == (0, True), out
    flip(home.home / "two" / "text")
    assert call()[0] == 0
    code, out = call("--deep", "--json", "-")
    found = json.loads(out)
    assert (code, found["wrong"]) == (1, 1)
    (one,) = (one for one in found["findings"] if one["state"] == "wrong")
    assert one["do"] == f"`rm -r {home.home / 'two'}`"
