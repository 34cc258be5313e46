"""The report's tables of data: sets once, measures beside each other by hand, and older results said to lack them."""

import pytest
from factory_results import result

from stagealign.report import build as report
from stagealign.report.read.book import open_book
from stagealign.report.read.data_sets import NAMES, data_sets
from stagealign.report.read.rungs import Start
from stagealign.report.sections.agreement import agreement, good_or_diverse, orders
from stagealign.report.sections.data import data_statements, described
from stagealign.store.results import write_result

LAB = {"distinct_2": 0.9, "self_bleu": 0.1, "embedding": 0.6, "surprise": 3.0, "surprise_gap": 0.5, "quality": 50.0}
PLAIN = {"distinct_1": 0.8, "length": 20.0, "length_gap": -1.0, "margin": 0.4}
SHARES = {"ties": 0.0, "duplicates": 0.01, "repeats": 0.002}


def entry(changes=None, agreement=None, error=0.01):
    """A result's `data`, all measures with one standard error; a change of None is an absent measure."""
    numbers = {**LAB, **PLAIN, **SHARES, **(changes or {})}
    metrics = {
        name: {"value": number, "unit": "x", "n": 128, "standard_error": error, "interval": None}
        if number is not None
        else {"value": None, "unit": "x", "n": 0, "standard_error": None, "interval": None, "reason": "no encoder"}
        for name, number in numbers.items()
    }
    return {"prompts": 128, "candidates": 256, "drops": {}, "metrics": metrics, "agreement": agreement or {}}


def with_data(cell, *entries, seed=0):
    made = result(cell, seed)
    for one, data in zip(made["rounds"], entries, strict=True):
        one["data"] = data
    return made


ON = {"distinct_2": 0.7, "self_bleu": 0.3, "embedding": 0.5, "surprise": 2.0, "surprise_gap": 0.505, "quality": 60.0}
LLAMA = {"distinct_2": 0.6, "self_bleu": 0.4, "embedding": 0.7, "surprise": 2.5, "surprise_gap": 0.5, "quality": 70.0}
RHO = {"distinct_2, self_bleu": {"value": 0.9, "n": 128}, "distinct_2, surprise": {"value": 0.1, "n": 128}}


@pytest.fixture
def book(tmp_path):
    """Zephyr with static, own and Llama-3's data; Phi-2 with static data alone; one old result without any."""
    write_result(tmp_path, with_data("zephyr-dpo-1off", entry(agreement=RHO)))
    write_result(tmp_path, with_data("zephyr-dpo-1on", entry(ON, RHO | {"distinct_2, self_bleu": {"value": 0.5}})))
    write_result(tmp_path, with_data("zephyr-dpo-1llama", entry(LLAMA)))
    write_result(tmp_path, with_data("phi2-dpo-1off", entry({"surprise": 3.4}, RHO)))
    write_result(tmp_path, with_data("zephyr-dpo-2off_on", entry(agreement=RHO), entry(ON)))
    write_result(tmp_path, result("qwen-dpo-1on"))
    return open_book(tmp_path, "lab")


@pytest.fixture
def measured(book):
    return [one for one in data_sets(book) if one.data is not None]


def rows(table):
    return {row.cells[0]: row.cells[1:] for row in table.rows}


def test_a_set_is_known_by_what_it_starts_from(book):
    found = [(one.source, one.start.model, one.start.method, one.start.before) for one in data_sets(book)]
    assert found == [
        ("off", "zephyr", "", ()),
        ("off", "phi2", "", ()),
        ("llama", "zephyr", "", ()),
        ("on", "zephyr", "", ()),
        ("on", "qwen", "", ()),
        ("on", "zephyr", "dpo", ("off",)),
    ]


def test_sets_of_the_same_texts_are_one_row(book):
    """Static texts are the same under both policies, their surprise is not; what is not measured says so."""
    table = described(book, data_sets(book))
    found = rows(table)
    assert list(found) == [
        "off, round 1",
        "llama, round 1",
        "on, Zephyr stand-in, start",
        "on, Qwen stand-in, start",
        "on, Zephyr stand-in, DPO, after off",
    ]
    assert found["off, round 1"] == (
        "0", "128", "0.800 ± 0.010\n0.900 ± 0.010", "0.100 ± 0.010", "0.60 ± 0.01", "3.00 to 3.40 (2 policies)\n"
        "0.50 to 0.50 (2 policies)", "50 ± 0", "20.0 ± 0.0\n−1.0 ± 0.0", "0.40 ± 0.01", "0.0%, 1.0%, 0.2%",
    )  # fmt: skip
    assert found["on, Qwen stand-in, start"][1] == "not measured"
    assert {row.state for row in table.rows} == {"done", "not measured"}
    assert all(len(row.cells) == len(table.columns) for row in table.rows)


def test_seeds_are_averaged(tmp_path):
    """0.9 and 0.8 are 0.85; their errors of 0.06 and 0.08 are 0.1 / 2."""
    for seed, (number, error) in enumerate(((0.9, 0.06), (0.8, 0.08))):
        write_result(tmp_path, with_data("zephyr-dpo-1off", entry({"embedding": number}, error=error), seed=seed))
    book = open_book(tmp_path, "lab")
    (row,) = described(book, data_sets(book)).rows
    assert (row.cells[1], row.cells[5]) == ("0, 1", "0.85 ± 0.05")


def test_an_absent_measure_shows_its_reason(tmp_path):
    write_result(tmp_path, with_data("zephyr-dpo-1off", entry({"embedding": None})))
    book = open_book(tmp_path, "lab")
    (row,) = described(book, data_sets(book)).rows
    assert row.cells[5] == "no value: no encoder"


def test_which_source_is_more_diverse_by_hand(measured):
    """Only Zephyr's start has more than one source; a difference of 0.005 is within the error."""
    table = orders(measured)
    assert table.columns[1:] == ("off or on", "off or llama", "on or llama")
    found = rows(table)
    assert found["distinct-2"] == (
        "off 1, on 0, cannot tell 0", "off 1, llama 0, cannot tell 0", "on 1, llama 0, cannot tell 0",
    )  # fmt: skip
    assert found["self-BLEU"] == found["distinct-2"], "less BLEU is more diverse"
    assert found["MiniLM distance"][1] == "off 0, llama 1, cannot tell 0"
    assert found["surprise gap"][0] == "off 0, on 0, cannot tell 1"
    assert found["quality under the oracle"] == (
        "off 0, on 1, cannot tell 0", "off 0, llama 1, cannot tell 0", "on 0, llama 1, cannot tell 0",
    )  # fmt: skip


def test_measures_beside_each_other_by_hand(measured):
    """Three couples of sources. Distance: llama, off, on; distinct-2: off, on, llama; so they share one couple."""
    found = rows(agreement(measured))
    assert len(found) == len(NAMES) * (len(NAMES) - 1) / 2
    assert found["distinct-2 and self-BLEU"][:4] == ("3", "0", "0", "+1.00")
    assert found["distinct-2 and MiniLM distance"][:4] == ("1", "2", "0", "−0.33")
    assert found["self-BLEU and surprise"][:4] == ("2", "1", "0", "+0.33")
    assert found["distinct-2 and surprise gap"][:4] == ("0", "0", "3", "–")
    # Over prompts: the static texts count once, under two policies twice.
    assert found["distinct-2 and self-BLEU"][4:] == ("+0.70 [+0.50, +0.90]", "2")
    assert found["distinct-2 and surprise"][4:] == ("+0.10 [+0.10, +0.10]", "3")
    assert found["self-BLEU and surprise"][4:] == ("–", "0")


def test_the_statement_names_what_contradicts(book):
    (finding,) = data_statements(book)
    assert finding.kind == "unsure"
    assert "Of 10 pairs of measures, 1 order two sources alike wherever both can tell, 5 contradict" in finding.text
    assert "distinct-2 and MiniLM distance in 2 of 3" in finding.text
    assert "4 can never both tell; 3 comparisons of two sources from one start." in finding.text
    assert "is +0.10 (distinct-2 and surprise) to +0.70 (distinct-2 and self-BLEU)" in finding.text


def test_measures_that_agree_are_a_finding_once_there_are_enough(tmp_path):
    """A coin agrees 5 times in 5 with p = 2/32, 6 times in 6 with 2/64."""
    alike = {"distinct_2": 0.7, "self_bleu": 0.3, "embedding": 0.5, "surprise": 2.0, "surprise_gap": 0.1}
    for seed in range(6):
        write_result(tmp_path, with_data("zephyr-dpo-1off", entry(), seed=seed))
        write_result(tmp_path, with_data("zephyr-dpo-1on", entry(alike), seed=seed))
        (finding,) = data_statements(open_book(tmp_path, "lab"))
        assert finding.kind == ("found" if seed == 5 else "unsure")
        assert "10 order two sources alike wherever both can tell, 0 contradict" in finding.text


def test_good_beside_diverse(book, measured):
    table = good_or_diverse(book, measured)
    assert {row.cells[0] for row in table.rows} == {"Zephyr stand-in, DPO, start"}
    assert [row.cells[2] for row in table.rows] == ["1.5e-4 (1 seed)", "3e-4 (1 seed)"]
    first = table.rows[0].cells
    assert first[3:5] == ("70 ± 0", "0.60 ± 0.01 / 0.70 ± 0.01")
    assert first[-1] in ("static", "llama", "undecided")
    assert book.ladder(Start("zephyr", "dpo", ()), "llama"), "the source's rungs are in the ladder"


def test_results_of_before_it_was_measured_still_make_a_report(tmp_path):
    write_result(tmp_path, result("zephyr-dpo-1off"))
    write_result(tmp_path, result("zephyr-dpo-1on"))
    book = open_book(tmp_path, "lab")
    assert list(data_statements(book)) == []
    assert all(row.cells[2] == "not measured" for row in described(book, data_sets(book)).rows)
    built = report.build(tmp_path, "lab")
    assert "not measured" in built["lab/README.md"]
    assert "Do the measures of diversity agree" not in built["lab/README.md"]


def test_a_report_with_another_source_is_whole(tmp_path):
    """Figures know no colour of their own for it; the pages show its policy and its data."""
    write_result(tmp_path, with_data("zephyr-dpo-1off", entry()))
    write_result(tmp_path, with_data("zephyr-dpo-2off_llama", entry(), entry(LLAMA)))
    built = report.build(tmp_path, "lab")
    assert "after off then llama" in built["lab/README.md"]
    assert "llama, round 2" in built["lab/index.html"]
    assert report.build(tmp_path, "lab") == built
