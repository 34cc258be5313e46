"""What moved between folders and cells: nothing where nothing did, the number where something did, and what is gone."""

import copy
import json

import pytest
from factory_results import result

from stagealign.base.errors import BadData, UnknownName
from stagealign.cli.compare import compared
from stagealign.report.read.compare import compare_cells, compare_folders
from stagealign.store.results import result_path, write_result


def folder(path, *made):
    for one in made:
        write_result(path, json.loads(json.dumps(one)))
    return path


def shifted(made, by):
    """The same result, each test prompt's gold reward of its last policy moved by `by`."""
    new = copy.deepcopy(made)
    for rung in new["rounds"][-1]["rungs"]:
        prompts = rung["metrics"]["test"]["prompts"]
        rung["metrics"]["test"]["prompts"] = {key: [gold + by, clean] for key, (gold, clean) in prompts.items()}
    return new


@pytest.fixture
def cells():
    return [result("zephyr-dpo-1on", seed) for seed in (0, 1)]


def test_the_same_results_are_the_same_to_the_last_digit(tmp_path, cells):
    a, b = folder(tmp_path / "a", *cells), folder(tmp_path / "b", *cells)
    found = compare_folders(a, b, "lab")
    assert not found.changed
    assert {one.p for one in found.moved} == {1.0}
    assert all(one.interval is None and one.before == one.after for one in found.moved)
    assert {one.quantity for one in found.moved} == {"gold reward", "clean gold reward", "boundary score"}
    assert compared(str(a), str(b), "lab", tmp_path) == 0


def test_a_shift_of_every_prompt_is_found_and_its_size_is_right(tmp_path, cells, capsys):
    a = folder(tmp_path / "a", *cells)
    b = folder(tmp_path / "b", *(shifted(one, 0.25) for one in cells))
    found = compare_folders(a, b, "lab")
    moved = [one for one in found.moved if one.more_than_noise]
    assert {one.quantity for one in moved} == {"gold reward"}
    assert all("after on" in one.policy for one in moved)
    assert [one.after - one.before for one in moved] == pytest.approx([0.25] * len(moved))
    assert compared(str(a), str(b), "lab", tmp_path) == 1
    assert "+0.250" in capsys.readouterr().out


def test_what_is_gone_fails_and_what_is_new_does_not(tmp_path, cells):
    a, b = folder(tmp_path / "a", *cells), folder(tmp_path / "b", cells[0])
    found = compare_folders(a, b, "lab")
    assert found.changed
    assert "zephyr start, seed 1" in found.only_first
    back = compare_folders(b, a, "lab")
    assert not back.changed
    assert back.only_second == found.only_first


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [("a.json", "b.json", "a.json: a file; compare two results folders"), ("gone.json", "gone", "no such folder"),
     ("gone/a", "zephyr-dpo-1on", "no such folder"), (".", "a.json", "a.json: a file")],
)  # fmt: skip
def test_what_is_neither_a_folder_nor_a_cell_is_named(tmp_path, monkeypatch, a, b, words):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadData, match=words):
        compared(a, b, "lab", tmp_path)


def test_two_cells_that_did_not_move_still_show_their_values(tmp_path, cells, capsys):
    folder(tmp_path, *cells)
    assert compared("zephyr-dpo-1on", "zephyr-dpo-1on", "lab", tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "boundary score" in said
    (score,) = [one for one in compare_cells(tmp_path, "lab", "zephyr-dpo-1on", "zephyr-dpo-1on").moved
                if one.quantity == "boundary score"]  # fmt: skip
    assert said.count(f"{score.before:.3f}") >= 2
    assert "3 numbers compared: 0 moved by more than noise (Holm over all), 0 within noise, 3 the same" in said


def test_two_cells_are_compared_by_the_policies_they_end_with(tmp_path, cells):
    folder(tmp_path, *cells, *(result("zephyr-dpo-1off", seed) for seed in (0, 1)))
    found = compare_cells(tmp_path, "lab", "zephyr-dpo-1off", "zephyr-dpo-1on")
    gold = next(one for one in found.moved if one.quantity == "gold reward")
    assert gold.policy == "zephyr-dpo-1off -> zephyr-dpo-1on"
    low, high = gold.interval
    assert low < gold.after - gold.before < high


def test_what_cannot_be_compared_is_said(tmp_path, cells):
    folder(tmp_path, *cells)
    with pytest.raises(
        BadData, match=r"no finished run of zephyr-dpo-1off; run it: `stagealign run --scale lab -k zephyr-dpo-1off`"
    ):
        compare_cells(tmp_path, "lab", "zephyr-dpo-1off", "zephyr-dpo-1on")
    with pytest.raises(UnknownName, match="nearest: 1off"):
        compared("zephyr-dpo-1offf", "zephyr-dpo-1on", "lab", tmp_path)
    with pytest.raises(BadData, match="nowhere: no such folder"):
        compared(str(tmp_path), str(tmp_path / "nowhere"), "lab", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="no finished results"):
        compare_folders(tmp_path, tmp_path / "empty", "lab")
    result_path(tmp_path, "lab", "zephyr-dpo-1on", 1).write_text("{", encoding="utf-8")
    with pytest.raises(BadData, match="damaged"):
        compare_folders(tmp_path, tmp_path, "lab")
