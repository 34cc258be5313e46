"""Made-up results in every state, and what a report reads from them."""

import pytest
from factory_report import SCRIPT
from factory_results import broken, fill, result

from stagealign.report import build as report
from stagealign.report.read.book import open_book
from stagealign.report.read.contrasts import contrasts
from stagealign.store.results import result_path, write_result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Zephyr with two seeds, one cell of Llama-3, and one run in each sorry state."""
    folder = tmp_path_factory.mktemp("made") / "results"
    fill(folder, seeds=2)
    write_result(folder, result("llama3-dpo-1on"))
    write_result(folder, broken("phi2-dpo-1off", "failed", SCRIPT))
    write_result(folder, broken("phi2-dpo-1on", "skipped", "no GPU"))
    damaged = result_path(folder, "lab", "qwen-dpo-1off", 0)
    damaged.write_text('{"schema": 1, "cell": "qw', encoding="utf-8")
    rung = result("pythia-dpo-1off")
    rung["rounds"][0]["rungs"][1] = {
        key: rung["rounds"][0]["rungs"][1][key] for key in ("learning_rate", "fingerprint")
    }
    rung["rounds"][0]["rungs"][1]["state"] = "not run"
    rung["model"]["note"] = SCRIPT
    write_result(folder, rung)
    return folder


@pytest.fixture(scope="module")
def built(results):
    return report.build(results, "lab")


@pytest.fixture(scope="module")
def book(results):
    return open_book(results, "lab")


@pytest.fixture(scope="module")
def compared(book):
    return contrasts(book)
