"""The report's table of capability: paired by item by hand, once a round, and what is not measured said to be so."""

import re

import pytest
from factory_results import result

from stagealign.report import build as report
from stagealign.report.read.book import open_book
from stagealign.report.sections.capability import rounds, statements, table
from stagealign.stats.statistics import mean_metric
from stagealign.store.results import write_result

ITEMS = [f"{number:016x}" for number in range(40)]


def entry(right, bits, items=ITEMS):
    """One policy's entry: `right` of the items are answered, and every text costs `bits`, a little more or less."""
    values = {
        "piqa acc": {item: 100.0 * (place < right) for place, item in enumerate(items)},
        "passages bits_per_byte": {item: bits + 0.01 * (place % 3) for place, item in enumerate(items[:12])},
    }
    better = {"piqa acc": ("percent", "higher"), "passages bits_per_byte": ("bits a byte", "lower")}
    metrics = {
        name: mean_metric(list(found.values()), better[name][0]) | {"better": better[name][1]}
        for name, found in values.items()
    }
    return {"fingerprint": "f", "policy": "p", "tasks": {}, "metrics": metrics, "items": values}


def write(folder, cell, entries, seed=0):
    names = ["start", *(f"round {number}" for number in range(1, len(entries)))]
    made = result(cell, seed)
    write_result(folder, made | {"capability": dict(zip(names, entries, strict=True))} if entries else made)


START, OFF, ON = entry(30, 1.0), entry(30, 1.05), entry(14, 1.3)


@pytest.fixture
def book(tmp_path):
    """After off hardly anything changes; after on sixteen answers are lost. One old result without any of it."""
    write(tmp_path, "zephyr-dpo-1off", [START, OFF])
    write(tmp_path, "zephyr-dpo-1on", [START, ON])
    write(tmp_path, "zephyr-dpo-2off_on", [START, OFF, entry(31, 1.04)])
    write(tmp_path, "qwen-dpo-1on", [])
    return open_book(tmp_path, "lab")


def test_one_row_a_round_with_changes_by_hand(book):
    found = table(book)
    assert found.columns[4:] == ("passages text, bits a byte", "piqa accuracy, percent", "Worse")
    rows = {row.cells[:2]: row for row in found.rows}
    assert list(rows) == [
        ("Zephyr stand-in, DPO, start", "off"),
        ("Zephyr stand-in, DPO, start", "on"),
        ("Zephyr stand-in, DPO, after off", "on"),
        ("Qwen stand-in, DPO, start", "on"),
    ]
    off, on, after, qwen = rows.values()
    assert off.cells[5] == "75.0 → 75.0\n+0.0 [+0.0, +0.0]"
    assert off.cells[4] == "1.010 → 1.060\n+0.050 [+0.050, +0.050]"
    assert on.cells[5].startswith("75.0 → 35.0\n−40.0 [−5"), "16 of 40, with the error of the paired differences"
    assert (off.cells[-1], on.cells[-1], after.cells[-1]) == (
        "passages text", "passages text and piqa accuracy", "none",
    )  # fmt: skip
    assert after.cells[4].endswith("−0.010 [−0.010, −0.010]")
    assert (qwen.cells[2], qwen.cells[-1], qwen.state) == ("not measured", "–", "not measured")
    assert all(len(row.cells) == len(found.columns) for row in found.rows)


def test_the_pairing_is_by_item(book):
    """Sixteen items of 40 go from 100 to 0: the differences' standard error is 100 sqrt(.4 * .6 / 40) = 7.75."""
    (on,) = (one for one in rounds(book, "zephyr") if (one.source, one.start.before) == ("on", ()))
    change = on.changes[1].change
    assert change["value"] == -40
    assert change["standard_error"] == pytest.approx(7.75, abs=0.4)
    assert [one.toward for one in on.changes] == [pytest.approx(-0.3), -40], "more bits are a loss"


def test_seeds_are_averaged_where_both_ends_are_measured(tmp_path):
    write(tmp_path, "zephyr-dpo-1off", [START, entry(30, 1.0)])
    write(tmp_path, "zephyr-dpo-1off", [START, entry(26, 1.0)], seed=1)
    write(tmp_path, "zephyr-dpo-1off", [START], seed=2)
    (found,) = rounds(open_book(tmp_path, "lab"))
    assert found.seeds == (0, 1)
    accuracy = found.changes[1]
    assert (accuracy.before, accuracy.after, accuracy.change["value"]) == (75, 70, -5)


def test_other_items_are_not_compared(tmp_path):
    write(tmp_path, "zephyr-dpo-1off", [START, OFF])
    write(tmp_path, "zephyr-dpo-1on", [START, entry(30, 1.0, [item[::-1] for item in ITEMS])])
    rows = table(open_book(tmp_path, "lab")).rows
    assert rows[1].cells[4:] == ("–", "–", "none")


def test_the_statement_counts_what_was_lost(book):
    """All three rounds gain; accuracy falls in one of them, by the text measure two are worse and one is better."""
    (finding,) = statements(book)
    assert finding.kind == "found"
    assert "3 rounds measured before and after (1 not), 3 with a gain above 0." in finding.text
    assert "By piqa accuracy: worse in 1 (1 after correction for many), better in 0" in finding.text
    assert "at worst −40.0 (Zephyr stand-in, DPO, start, on)" in finding.text
    assert "By passages text: worse in 2" in finding.text


def test_nothing_lost_is_not_sure(tmp_path):
    """One answer of 40 is lost: error 100 sqrt(1/40 * 39/40 / 40) = 2.47, of which 2.8 times could have been seen."""
    write(tmp_path, "zephyr-dpo-1off", [START, entry(29, 1.0)])
    (finding,) = statements(open_book(tmp_path, "lab"))
    assert finding.kind == "unsure"
    text, accuracy = finding.text.split("By piqa accuracy: ")
    assert "worse in 0 (0 after correction for many)" in accuracy
    assert float(re.search(r"a change of ([\d.]+) could have been seen", accuracy)[1]) == pytest.approx(6.9, abs=0.3)
    assert "could have been seen" not in text, "no text moved: that has no error to tell from"


def test_results_without_it_still_make_a_report(tmp_path):
    write_result(tmp_path, result("zephyr-dpo-1off"))
    book = open_book(tmp_path, "lab")
    assert table(book).rows == ()
    (finding,) = statements(book)
    assert (finding.kind, "--capability" in finding.text) == ("missing", True)
    built = report.build(tmp_path, "lab")
    assert "not measured: `stagealign run" in built["lab/index.html"].replace("&#39;", "'")
    assert "Capability before and after</h2>" not in built["lab/index.html"]


def test_pages_show_it(tmp_path):
    write(tmp_path, "zephyr-dpo-1off", [START, OFF])
    write(tmp_path, "zephyr-dpo-1on", [START, ON])
    built = report.build(tmp_path, "lab")
    assert "Capability before and after" in built["lab/README.md"]
    for page in ("lab/index.html", "lab/zephyr-dpo.html"):
        assert "75.0 → 35.0" in built[page]
    assert report.build(tmp_path, "lab") == built
