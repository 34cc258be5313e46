"""Speeds in the report are those of the files; what was not measured stays in the table."""

import json
import re

import pytest

from stagealign.base.errors import BadData
from stagealign.report import build as report
from stagealign.report.pages import speed
from stagealign.report.pages.aims import ROWS
from stagealign.report.pages.front import with_speed

MADE = {
    "settings": {"threads": 2, "repeats": 2, "small": False, "device": "cpu"},
    "hardware": {"processor": "a <made-up> processor", "cores": 2, "threads": 2},
    "packages": {"torch": "2.13.0"},
}


LEAN = "ours, micro-batch 1 and activation checkpointing"
LIST = {"median": 0.7, "least": 0.6, "most": 0.8}


def run(seconds, **more):
    return {"seconds": seconds, "cpu_seconds": seconds, "work": 4, "per_second": 4 / seconds, "peak_mb": 100} | more


def ratio(ours, peer, median, **more):
    time = {"median": median, "least": median - 0.5, "most": median + 0.5}
    return {"ours": ours, "peer": peer, "time": time, "processor": time, **more}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "speed" / "cpu"
    folder.mkdir(parents=True)
    made = {
        "train-14m": {
            "runs": {
                "ours": [run(1.0, roof_percent=30.0)],
                "TRL": [run(12.0, roof_percent=2.5)],
                "TRL best": [run(4.0, roof_percent=8.0)],
            },
            "ratios": [ratio("ours", "TRL", 12.0, memory=0.25), ratio("ours", "TRL best", 4.5)],
        },
        "memory-160m": {"runs": {LEAN: [run(1)], "TRL": [run(2)]}, "ratios": [ratio(LEAN, "TRL", 2, memory=0.7)]},
        "start": {
            "runs": {"stagealign list": [run(0.7)]},
            "times": {"stagealign list": dict.fromkeys(("seconds", "cpu_seconds"), LIST)},
            "left_out": {"stagealign plan": "this version has no such command"},
        },
        "growth-pairs": {
            "points": [{"size": 64, "seconds": 2.0, "peak_mb": 500}, {"size": 4096, "seconds": 120.0, "peak_mb": 510}],
            "exponents": {"seconds": 0.98, "cpu_seconds": 0.99, "peak_mb": 0.0},
        },
    }  # fmt: skip
    for key, found in made.items():
        (folder / f"{key}.json").write_text(json.dumps({"row": key, "made": MADE, **found}))
    return tmp_path / "results"


def lines(results):
    return {row.cells[:2]: row for row in speed.table(speed.read(results)).rows}


def test_what_was_measured_stands_beside_its_aim(results):
    found = lines(results)
    reached = found["training, Pythia-14m shape", "TRL"].cells
    assert reached[2].startswith(
        "12.0x [11.5, 12.5], processor 12.0x\n0.25 of its memory\n30.0% of the roof, peer 2.5%"
    )
    assert reached[3:] == ("10x: reached", "not measured", "3x")
    missed = found["training, Pythia-14m shape", "TRL best"].cells
    assert missed[3] == "5x: not reached; at the roof it would be 15.0x"
    step = found[f"a step of 8 pairs x 512 tokens, 160m shape\n{LEAN}", "TRL"].cells
    assert step[2].startswith("0.70 of its memory")
    assert step[3] == "at most 0.5 of its memory: not reached"
    assert found["start-up\nstagealign list", "–"].cells[2:] == (
        "0.70 s [0.60, 0.80], processor 0.70 s", "0.5 s: not reached", "–", "–",
    )  # fmt: skip
    assert found["start-up\nstagealign plan", "–"].cells[2] == "this version has no such command"
    grown = found["training over pairs", "–"].cells
    assert grown[2] == "exponent 0.98, processor 0.99\n64 to 4,096 pairs: 2.0 to 120.0 s, 500 to 510 MB"
    assert grown[3] == "at most 1.1: reached"


def test_every_row_is_there_measured_or_not(results, tmp_path):
    nothing = speed.table(speed.read(tmp_path / "none"))
    assert len(nothing.rows) == len(lines(results)) == sum(len(r.against) + len(r.limits) or 1 for r in ROWS)
    assert all(row.state == "not run" for row in nothing.rows)
    assert "GPU: not measured; `make speed DEVICE=cuda` fills it." in nothing.note
    assert lines(results)["training, Pythia-160m shape", "TRL best"].state == "not run"
    assert lines(results)["training, 1B shape, bf16", "TRL"].cells[2:4] == ("–", "–")
    assert speed.page(tmp_path / "none") == {}


def test_the_page_is_whole_and_escaped(results):
    page = speed.page(results)["speed.html"]
    assert "a &lt;made-up&gt; processor" in page
    assert "<made-up>" not in page
    assert page.count("<svg") == 1
    assert "12.0x" in page
    assert speed.page(results)["speed.html"] == page


def test_the_report_of_a_scale_has_the_page_and_names_it(results):
    from factory_results import fill

    fill(results)
    built = report.build(results, "lab")
    assert built["speed.html"] == speed.page(results)["speed.html"]
    assert '<a href="speed.html">' in built["index.html"]


def test_the_readme_has_the_table_between_its_markers(results):
    text = "before\n<!-- speed: x -->\nold\n<!-- /speed -->\nafter\n"
    new = with_speed(text, results)
    assert new.startswith("before\n<!-- speed: x -->\n| what | against | CPU | aim, CPU |\n"), "no GPU, no column"
    assert new.endswith("<!-- /speed -->\nafter\n")
    assert "old" not in new
    assert "a &lt;made-up&gt; processor" in new
    assert re.search(r"\| training, Pythia-14m shape \| TRL \| 12.0x .*10x: reached \|\n", new)
    assert "GPU: not measured; `make speed DEVICE=cuda` fills it." in new
    assert "Not measured yet: training, Pythia-160m shape; " in new
    assert with_speed(new, results) == new
    assert with_speed("no markers\n", results) == "no markers\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"row": "flying"}', '{"row": "sweep"}'])
def test_a_file_that_is_no_result_is_refused(results, text):
    (results / "speed" / "cpu" / "train-160m.json").write_text(text)
    with pytest.raises(BadData, match=r"train-160m.json: .*remove it"):
        speed.read(results)


def test_thin_models_are_not_shown_as_speed(results):
    small = {"row": "sweep", "made": MADE | {"settings": MADE["settings"] | {"small": True}}}
    (results / "speed" / "cpu" / "sweep.json").write_text(json.dumps(small))
    with pytest.raises(BadData, match=r"sweep.json: measured with `--small`"):
        speed.read(results)
