"""A source or method that somebody adds to the grid reaches every part of the report under its own name."""

import pytest
from factory_results import result

from stagealign.grid import methods
from stagealign.grid.sources import SCHEDULES, SOURCES
from stagealign.grid.spec import Method, Source
from stagealign.report import build as report
from stagealign.report.read.book import open_book
from stagealign.report.read.contrasts import contrasts
from stagealign.report.read.sides import COMPARED, data_name, ordered, others
from stagealign.report.sections.drawing import INK, marks_in_words, method_look, source_look
from stagealign.report.sections.findings import findings
from stagealign.report.sections.tables import effectiveness
from stagealign.store.results import write_result


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Zephyr with off-policy data, on-policy data and a made-up mix of both, alone and before other rounds."""
    monkeypatch.setitem(SOURCES, "mix", Source("mix", "half static, half own samples", on_policy=True))
    for schedule in (("mix",), ("off", "mix"), ("mix", "off"), ("mix", "on")):
        monkeypatch.setitem(SCHEDULES, f"{len(schedule)}{'_'.join(schedule)}", schedule)
    folder = tmp_path / "results"
    for schedule in ("1off", "1on", "1mix", "2off_on", "2off_off", "2off_mix", "2mix_off", "2mix_on"):
        made = result(f"zephyr-dpo-{schedule}")
        for rung in (rung for entry in made["rounds"] for rung in entry["rungs"]):
            rung["training"]["curve"] = [{"step": step, "loss": 0.6, "margin": 0.1 * step} for step in (1, 2)]
        texts = {name: ["a text"] for name in ("start", *(f"round {n + 1}" for n in range(len(made["rounds"]))))}
        key = min(made["start"]["test"]["prompts"])
        write_result(folder, made | {"samples": [{"prompt": key, "text": "Write.", "completions": texts}]})
    return folder


def test_a_new_source_stands_on_every_page_under_its_name(results):
    built = report.build(results, "lab")
    index = built["lab/README.md"]
    assert "Gain, mix |" in index
    assert "after off then mix" in index
    assert "One round of mix data raised the boundary score" in index
    assert "after mix data" in index
    for figure in ("gains", "frontier", "boundary"):
        assert "mix data" in built[f"lab/{figure}.svg"], figure
    row = built["lab/zephyr-dpo.html"]
    assert '<th scope="col">mix</th>' in row
    assert "mix data" in row, "the legend of the training curves"
    assert report.build(results, "lab") == built


def test_the_paper_compares_two_sources_whatever_else_was_run(results):
    compared = contrasts(open_book(results, "lab"))
    first = next(one for one in compared if not one.start.before)
    assert list(first.best) == ["off", "on", "mix"]
    assert first.better in ("off", "on", "undecided")
    table = effectiveness(open_book(results, "lab"), compared)
    assert table.columns[3:6] == ("Gain, off-policy", "Gain, on-policy", "Gain, mix")
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    assert findings(open_book(results, "lab"), compared)


def test_sources_stand_in_the_grids_order_and_unknown_ones_last():
    assert ordered(["gone", "llama", "on", "off", "on"]) == ["off", "on", "llama", "gone"]
    assert others(["llama", "on", "off"]) == ["llama"]
    assert [data_name(source) for source in (*COMPARED, "llama")] == ["off-policy", "on-policy", "llama"]
    looks = [source_look(source) for source in (*COMPARED, "llama", "gone")]
    assert len(set(looks)) == 4
    assert looks[-1] == (INK, "D")


def test_each_method_has_a_marker_and_a_line_of_its_own(monkeypatch):
    assert marks_in_words() == "circle: DPO, triangle: SLiC-HF"
    monkeypatch.setattr(methods, "BASES", (*methods.BASES, Method("toy", "Toy", form="sigmoid", beta=0.1)))
    assert marks_in_words().endswith(", square: Toy")
    assert len({method_look(base.key) for base in methods.BASES}) == 3
    assert method_look("dpo_beta0.5") == method_look("dpo")
