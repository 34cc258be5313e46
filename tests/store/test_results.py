"""One file a run: atomic writes, reading, kept rungs, errors for damage."""

import copy
import json
from typing import Literal

import pytest
from factory_results import broken, result

from stagealign.base.errors import BadData
from stagealign.base.shapes import NUMBER, SHARE, TEXT, WHOLE
from stagealign.store.result_types import ModelEntry
from stagealign.store.results import SCHEMA, SHAPE, read_result, read_results, result_path, says_all, write_result
from stagealign.store.typed_shape import shape_of


def test_a_result_comes_back_as_it_was(tmp_path):
    made = result("zephyr-dpo-2off_on")
    path = write_result(tmp_path, made)
    assert (
        path == result_path(tmp_path, "lab", "zephyr-dpo-2off_on", 0) == tmp_path / "lab/zephyr-dpo-2off_on-seed0.json"
    )
    assert read_result(path) == json.loads(json.dumps(made))
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    before = path.read_bytes()
    write_result(tmp_path, made)
    assert path.read_bytes() == before


def without(made, rate):
    """The same result from a call that did not run this rung."""
    less = copy.deepcopy(made)
    for rung in less["rounds"][-1]["rungs"]:
        if rung["learning_rate"] == rate:
            kept = {key: rung[key] for key in ("learning_rate", "fingerprint")}
            rung.clear()
            rung.update(kept | {"state": "not run"})
    return less


def test_a_demo_keeps_the_rungs_that_the_grid_has_done(tmp_path):
    made = json.loads(json.dumps(result("zephyr-dpo-1on")))
    path = write_result(tmp_path, made)
    write_result(tmp_path, without(made, made["rounds"][0]["rungs"][1]["learning_rate"]))
    assert read_result(path) == made


def test_a_rung_of_another_spec_is_not_kept(tmp_path):
    made = json.loads(json.dumps(result("zephyr-dpo-1on")))
    path = write_result(tmp_path, made)
    demo = without(made, made["rounds"][0]["rungs"][1]["learning_rate"])
    demo["rounds"][-1]["rungs"][1]["fingerprint"] = "another"
    write_result(tmp_path, demo)
    assert [rung["state"] for rung in read_result(path)["rounds"][-1]["rungs"]] == ["done", "not run"]


def test_a_rung_that_was_run_again_replaces_the_old_one(tmp_path):
    made = json.loads(json.dumps(result("zephyr-dpo-1on")))
    write_result(tmp_path, made)
    again = copy.deepcopy(made)
    again["rounds"][0]["rungs"][0]["kl"]["value"] = 123.0
    path = write_result(tmp_path, again)
    assert read_result(path)["rounds"][0]["rungs"][0]["kl"]["value"] == 123.0


def test_a_rewritten_result_keeps_the_count_of_the_call_that_computed(tmp_path):
    """Measuring the data later rewrites a result whose forwards are then all reused, yet once were computed."""
    made = json.loads(json.dumps(result("zephyr-dpo-1on")))
    path = write_result(tmp_path, made)
    later = copy.deepcopy(made)
    for one in later["rounds"]:
        one["data"] = {"prompts": 1}
        for rung in one["rungs"]:
            rung["training"]["reference"] = {"computed": 0, "reused": 512}
    assert not says_all(path, later)
    write_result(tmp_path, later)
    assert says_all(path, later)
    assert read_result(path)["rounds"][0]["rungs"] == made["rounds"][0]["rungs"]
    more = copy.deepcopy(later)
    more["rounds"][0]["rungs"][0]["training"]["reference"] = {"computed": 512, "reused": 0}
    write_result(tmp_path, more)
    assert read_result(path)["rounds"][0]["rungs"][0]["training"]["reference"] == {"computed": 512, "reused": 0}


def test_a_rewritten_result_keeps_the_claims_as_they_stood_when_its_numbers_were_made(tmp_path):
    made = result("zephyr-dpo-1on")
    write_result(tmp_path, made | {"claims": {"rule": "as it was"}})
    path = write_result(tmp_path, made | {"claims": {"rule": "as it is now", "new": "one"}})
    assert read_result(path)["claims"] == {"rule": "as it was", "new": "one"}


def test_a_finished_run_replaces_a_failed_one(tmp_path):
    path = write_result(tmp_path, broken("zephyr-dpo-1on", "failed", "no luck"))
    assert read_result(path)["state"] == "failed"
    write_result(tmp_path, result("zephyr-dpo-1on"))
    assert read_result(path)["state"] == "done"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_never_written(value, tmp_path):
    made = result("zephyr-dpo-1on")
    made["start"]["test"]["gold"]["value"] = value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(tmp_path, made)
    assert not result_path(tmp_path, "lab", "zephyr-dpo-1on", 0).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"schema": 1, "cell"', "damaged"),
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b"[]", "schema 'list'"),
        (b"{}", "schema None"),
        (b'{"schema": 99}', f"schema 99, this version reads {SCHEMA}"),
    ],
)
def test_damage_is_named_with_the_command_that_repairs(content, words, tmp_path):
    path = result_path(tmp_path, "lab", "zephyr-dpo-1on", 0)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BadData) as caught:
        read_result(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "`stagealign run --scale lab -k zephyr-dpo-1on`" in str(caught.value)
    write_result(tmp_path, result("zephyr-dpo-1on"))
    assert read_result(path)["state"] == "done"


def test_a_damaged_file_is_a_row_too(tmp_path):
    write_result(tmp_path, result("zephyr-dpo-1on"))
    damaged = write_result(tmp_path, result("zephyr-dpo-1off"))
    damaged.write_text("{")
    (damaged.parent / "notes.txt").write_text("not a result")
    found = dict(read_results(tmp_path, "lab"))
    assert [path.stem for path in found] == ["zephyr-dpo-1off-seed0", "zephyr-dpo-1on-seed0"]
    assert isinstance(found[damaged], BadData)
    assert list(read_results(tmp_path, "smoke")) == []


def test_scales_do_not_share_a_folder(tmp_path):
    assert write_result(tmp_path, result("pythia-dpo-1on", scale="smoke")).parent.name == "smoke"
    assert write_result(tmp_path, result("pythia-dpo-1on")).parent.name == "lab"


def test_the_shape_of_a_result_follows_from_its_type():
    """Optional fields end in `?`, `None` is allowed where the type says so, and unchecked fields are left out."""
    assert SHAPE["seed"] == WHOLE
    assert SHAPE["claims?"].shape == TEXT
    assert SHAPE["model"].keys() == shape_of(ModelEntry).keys()
    assert "stand_in_for?" not in SHAPE["model"]
    assert not {"schema", "capability?", "seal?"} & SHAPE.keys()
    test = SHAPE["start?"]["test?"]
    assert test["boundary?"]["interval"] == [SHARE, SHARE]
    assert test["gold?"]["interval?"].shape == [NUMBER]
    assert test["prompts"].shape == [NUMBER, NUMBER]


@pytest.mark.parametrize("kind", [set[int], dict[int, str], int | str, bytes, Literal[1]])
def test_a_type_without_a_json_shape_is_refused(kind):
    with pytest.raises(TypeError, match="no JSON shape"):
        shape_of(kind)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made.update(state="perhaps"), "damaged (state is none of done, failed, skipped)"),
        (lambda made: made["start"]["test"].pop("prompts"), "damaged (start.test.prompts is missing)"),
        (lambda made: made["rounds"][0]["rungs"][0].pop("gain"), "damaged (rounds.0.rungs.0.gain is missing)"),
        (
            lambda made: made["rounds"][0]["rungs"][1]["training"].update(curve=3),
            "damaged (rounds.0.rungs.1.training.curve is a number, a list expected)",
        ),
        (
            lambda made: made["rounds"][0]["rungs"][0]["metrics"]["test"]["boundary"].update(score=1.5),
            "rungs.0.metrics.test.boundary.score is 1.5, a share from 0 to 1 expected)",
        ),
    ],
)
def test_a_field_of_another_type_is_named(change, words, tmp_path):
    made = json.loads(json.dumps(result("zephyr-dpo-1on")))
    change(made)
    with pytest.raises(BadData) as caught:
        read_result(write_result(tmp_path, made))
    assert words in str(caught.value)
