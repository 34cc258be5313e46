"""What a report says of made-up results: states, claims, tables, strategies and numbers as words."""

import json

import pytest
from factory_results import fill, of_cell, result

from stagealign.base.identity import plain as identity
from stagealign.grid import paper, registry, select, variants
from stagealign.grid.claims import of_scale
from stagealign.grid.spec import Engine
from stagealign.report import build as report
from stagealign.report.read.book import open_book
from stagealign.report.read.contrasts import contrasts
from stagealign.report.read.rungs import Start
from stagealign.report.sections.claims import verdicts
from stagealign.report.sections.findings import findings
from stagealign.report.sections.ledgers import ladder, runs
from stagealign.report.sections.strategies import strategies
from stagealign.report.sections.tables import boundaries, effectiveness, ratios
from stagealign.report.sections.words import brief, count, duration, gain, listing, plain, rate, score
from stagealign.store.results import result_path, write_result


def start(compared, model="zephyr", before=()):
    return next(one for one in compared if one.start == Start(model, "dpo", before))


def test_a_round_one_rung_of_two_round_cells_counts_once(book):
    rungs = [rung for rung in book.rungs if rung.start == Start("zephyr", "dpo", ()) and rung.source == "off"]
    assert [(rung.seed, rung.learning_rate) for rung in rungs] == [(0, 1.5e-4), (1, 1.5e-4), (0, 3e-4), (1, 3e-4)]
    recorded = next(rung for rung in rungs if rung.learning_rate == 3e-4)
    assert recorded.cells == ("zephyr-dpo-1off", "zephyr-dpo-2off_off", "zephyr-dpo-2off_on")


def test_cells_pair_by_what_the_policy_has_seen(compared):
    names = [one.start.name for one in compared if one.start.model == "zephyr"]
    assert names == ["start", "after off", "after on"]
    assert start(compared, before=("off",)).start.round == 2


def test_the_best_rung_is_the_validation_splits(book, compared):
    for source, side in start(compared).best.items():
        clean = {}
        for rung in book.ladder(Start("zephyr", "dpo", ()), source):
            clean.setdefault(rung.learning_rate, []).append(rung.validation)
        assert side.learning_rate == max(clean, key=lambda key: sum(clean[key]))


def test_views_and_verdicts(compared):
    first, second = start(compared), start(compared, before=("off",))
    assert (first.named, first.better, first.named_it) == ("off", "off", "yes")
    assert (second.named, second.better, second.named_it) == ("on", "on", "yes")
    assert [view.name for view in first.views] == ["equal", "equal", "best", "matched KL"]
    assert first.view("matched KL").kl == pytest.approx(6.0)
    assert first.view("best").ratio["seeds"] == 2


def test_one_source_alone_decides_nothing(compared):
    lonely = start(compared, "llama3")
    assert (lonely.better, lonely.named_it, list(lonely.best)) == ("not run", "not run", ["on"])


def test_three_states_are_told_apart(book):
    states = {row.state for row in ladder(book).rows}
    assert states == {"done", "failed", "skipped", "not run"}
    words = "\n".join("|".join(row.cells) for row in runs(book).rows)
    assert "skipped: no GPU" in words
    assert "failed: <script>" in words
    runs_missing = 6 * len(registry.scale("lab").seeds)
    assert f"zephyr-slichf: 1off, 1on, 2off_off, 2off_on, 2on_off, 2on_on ({runs_missing} runs)" in words


def test_no_grid_run_is_dropped(book):
    everything = {f"{cell.id}-seed{seed}" for cell in registry.cells("lab") for seed in cell.scale.seeds}
    seen = {f"{one['cell']}-seed{one['seed']}" for one in book.results} | set(book.missing) | {"qwen-dpo-1off-seed0"}
    assert seen >= everything


def test_stand_ins_are_called_stand_ins_in_every_table(book, compared):
    for table in (effectiveness(book, compared), ratios(book, compared), boundaries(book), ladder(book)):
        for row in table.rows:
            if row.state == "done":
                assert "stand-in" in row.cells[0], table.title


def test_papers_column_holds_the_papers_numbers_only(book, compared):
    table = ratios(book, compared)
    column = {row.cells[0]: row.cells[-1] for row in table.rows}
    assert "real model" in table.columns[-1]
    assert column["Zephyr stand-in, DPO, start"] == "Zephyr: 0.44 (D)"
    assert column["Pythia stand-in, DPO, start"] == f"Pythia: {paper.NOT_FOUND}"
    allowed = {one.text for one in paper.KNOWN} | {paper.NOT_FOUND}
    assert {text.partition(": ")[2] for text in column.values()} <= allowed


def test_boundary_table_starts_at_the_start(book):
    rows = [row.cells for row in boundaries(book).rows if row.cells[0].startswith("Zephyr")]
    assert [row[1] for row in rows[:3]] == ["start", "DPO, after off", "DPO, after on"]
    assert rows[0][2].startswith("0.35 [")
    assert rows[0][-1] == "Zephyr: 0.4 (N)"


def test_findings_say_what_holds_and_what_is_not_known(book, compared):
    said = findings(book, compared)
    text = "\n".join(f"{one.kind}: {one.text}" for one in said)
    assert said[0].kind == "scope"
    assert "not the paper's models" in said[0].text
    assert "1 failed, 1 skipped" in said[0].text
    assert "The boundary score named the better source in" in text
    assert "under-powered" in text
    assert "missing: Left out of this report: results/lab/qwen-dpo-1off-seed0.json: damaged" in text


def test_each_claim_gets_the_verdict_that_its_results_give(book, compared):
    found = {one.claim.key: one for one in verdicts(book, compared)}
    assert set(found) == {claim.key for claim in of_scale("lab")}
    assert found["zephyr-start-off"].state == found["zephyr-after-off-on"].state == "reproduced"
    assert found["zephyr-start-below"].state == "reproduced"
    assert "ratio" in found["zephyr-start-off"].estimate.shown
    assert found["llama3-start-on"].state == "not run"
    assert "no results of both sources" in found["llama3-start-on"].why
    assert found["rule"].state == "under-powered", "a handful of cases cannot show a rule"


def test_a_claim_that_was_changed_after_its_results_judges_nothing(tmp_path):
    for cell in ("zephyr-dpo-1off", "zephyr-dpo-1on"):
        write_result(tmp_path, result(cell) | {"claims": {"zephyr-start-off": "0123456789abcdef"}})
    book = open_book(tmp_path, "lab")
    found = {one.claim.key: one for one in verdicts(book, contrasts(book))}
    assert found["zephyr-start-off"].state == "not run"
    assert "was changed after results" in found["zephyr-start-off"].why
    assert found["zephyr-start-below"].state == "reproduced"


def write_variants(folder, method="dpo", schedules=("1off", "1on")):
    """Zephyr's first round as vLLM and a server sampled it, and with another gold reward."""
    cells = [registry.cell(f"zephyr-{method}-{schedule}") for schedule in schedules]
    for engine in (Engine("served", None), Engine("vllm", "0.31.0")):
        for cell in variants.sampled_by(cells, engine):
            write_result(folder, of_cell(cell))
    for cell in variants.evaluated_by(cells, "reward:other/reward"):
        write_result(folder, of_cell(cell))


def test_claims_count_what_another_sampler_wrote_and_never_another_gold_reward(tmp_path):
    write_variants(tmp_path)
    book = open_book(tmp_path, "lab")
    assert {start.method for start in book.starts} == {"dpo_served", "dpo_vllm", "dpo_reward"}
    counted = [one for one in contrasts(book) if one.method]
    assert [(one.start.method, one.method) for one in counted] == [("dpo_vllm", "dpo")]
    found = {one.claim.key: one for one in verdicts(book, contrasts(book))}
    assert found["zephyr-start-off"].state == "reproduced"
    assert found["zephyr-start-off"].estimate.shown.endswith("; sampled by vllm")
    assert found["zephyr-off-rises"].estimate is not None


def test_one_starting_policy_is_one_case_however_often_it_was_sampled(tmp_path):
    fill(tmp_path)
    alone = contrasts(open_book(tmp_path, "lab"))
    write_variants(tmp_path)
    beside = contrasts(open_book(tmp_path, "lab"))
    assert len(beside) == len(alone) + 3
    assert [one for one in beside if one.method] == alone
    assert strategies(beside) == strategies(alone)
    before, after = (open_book(tmp_path, "lab"), beside), (open_book(tmp_path, "lab"), alone)
    told = [[one.text for one in findings(*given) if one.kind != "missing"][1:] for given in (before, after)]
    assert told[0] == told[1], "but for the number of results"
    assert [one.state for one in verdicts(open_book(tmp_path, "lab"), beside)] == [
        one.state for one in verdicts(open_book(tmp_path, "lab"), alone)
    ]


def test_starts_of_other_samplers_and_golds_are_policies_of_their_own(tmp_path):
    """Ours has seed 0, vLLM seed 1: one score each, never their mean; another gold reward's start judges no claim."""
    cell = registry.cell("zephyr-dpo-1on")
    write_result(tmp_path, result(cell.id))
    write_result(tmp_path, of_cell(variants.sampled_by([cell], Engine("vllm", "0.31.0"))[0], 1))
    write_result(tmp_path, of_cell(variants.evaluated_by([cell], "reward:other/reward")[0], 2))
    book = open_book(tmp_path, "lab")
    starts = {policy.method: policy.seed for policy in book.policies if not policy.sources}
    assert starts == {"": 0, "_vllm": 1, "_reward": 2}
    assert [p.seed for row in ("dpo", "dpo_vllm") for p in book.policy(Start("zephyr", row, ()))] == [0, 1]
    names = [row.cells[1] for row in boundaries(book).rows]
    assert {"start", "start, vllm", "start, reward"} <= set(names)
    (tmp_path / "lab" / f"{cell.id}-seed0.json").unlink()
    (tmp_path / "lab" / "zephyr-dpo_vllm-1on-seed1.json").unlink()
    only = open_book(tmp_path, "lab")
    assert all(one.estimate is None for one in verdicts(only, contrasts(only)))


def test_a_row_without_one_source_does_not_stand_for_one_that_has_both(tmp_path):
    write_result(tmp_path, result("zephyr-dpo-1on"))
    write_variants(tmp_path)
    assert [one.start.method for one in contrasts(open_book(tmp_path, "lab")) if one.method] == ["dpo_vllm"]


def test_strategies_by_hand(compared):
    """Every strategy's gain is the mean of what it takes; the best in hindsight minus it is what it loses."""
    every = [one for one in compared if {"on", "off"} <= one.best.keys()]
    gains = [{source: side.gain["value"] for source, side in one.best.items()} for one in every]
    found = {one.name: one for one in strategies(compared)}
    best = sum(max(pair.values()) for pair in gains) / len(gains)
    for source in ("off", "on"):
        mean = sum(pair[source] for pair in gains) / len(gains)
        assert found[f"always {source}-policy"].gain["value"] == pytest.approx(mean)
        assert found[f"always {source}-policy"].lost == pytest.approx(best - mean)
    sure = [one for one in every if one.better in ("on", "off")]
    assert found["follow the boundary score"].right == sum(one.named == one.better for one in sure)
    assert found["a coin, on average"].right == len(sure) / 2
    assert strategies([]) == []


def test_a_contradiction_is_said_plainly(tmp_path):
    """Off- and on-policy data change places: the stand-in now says the reverse of the paper."""
    for source, other in (("off", "on"), ("on", "off")):
        swapped = result(f"zephyr-dpo-1{source}")
        swapped |= {"cell": f"zephyr-dpo-1{other}", "schedule": f"1{other}", "sources": [other]}
        swapped["rounds"][0]["source"] = other
        swapped["spec"] = identity(registry.cell(swapped["cell"]))
        write_result(tmp_path, swapped)
    book = open_book(tmp_path, "lab")
    said = [one for one in findings(book, contrasts(book)) if one.kind == "against"]
    judged = {one.claim.key: one for one in verdicts(book, contrasts(book))}
    assert judged["zephyr-start-off"].state == "not reproduced"
    assert judged["zephyr-start-off"].why == "the opposite direction holds"
    assert any(one.text.startswith("Against the paper's rule") for one in said)


def test_without_shared_prompts_the_error_counts_them(tmp_path):
    wrong = result("zephyr-dpo-1off")
    prompts = wrong["rounds"][0]["rungs"][0]["metrics"]["test"]["prompts"]
    prompts.pop(next(iter(prompts)))
    write_result(tmp_path, wrong)
    with pytest.raises(ValueError, match="1 of the hashes before are missing after"):
        report.build(tmp_path, "lab")


def test_a_run_that_never_began_is_still_called_a_stand_in(book):
    words = [row.cells[0] for row in ladder(book).rows if row.state in ("failed", "skipped")]
    assert words == ["Phi-2 stand-in, phi2-dpo-1off", "Phi-2 stand-in, phi2-dpo-1on"]


def test_recorded_learning_rate_from_the_spec_where_the_round_is_silent(tmp_path):
    silent = result("zephyr-dpo-1off")
    del silent["rounds"][0]["learning_rate"]
    write_result(tmp_path, silent)
    planned = registry.scale("lab").training.learning_rate["off"]
    recorded = [rung.learning_rate for rung in open_book(tmp_path, "lab").rungs if rung.recorded]
    assert recorded == [rate for rate in (1.5e-4, 3e-4) if rate == planned]


def test_results_of_another_spec_are_left_out_by_name(tmp_path):
    made = json.loads(json.dumps(result("zephyr-dpo-1off")))
    made["spec"]["scale"]["training"]["batch"] = 99
    write_result(tmp_path, made)
    write_result(tmp_path, result("zephyr-dpo-1on"))
    found = open_book(tmp_path, "lab")
    assert [one["cell"] for one in found.results] == ["zephyr-dpo-1on"]
    (text,) = found.damaged
    assert "zephyr-dpo-1off-seed0.json" in text
    assert "scale.training.batch was 99, is 8" in text
    assert "stagealign run -k zephyr-dpo-1off --scale lab" in text
    del made["spec"]["scale"]["training"]["batch"]  # a field that did not exist yet
    write_result(tmp_path, made)
    assert not open_book(tmp_path, "lab").damaged


def test_only_damaged_results_still_give_a_report(tmp_path):
    path = result_path(tmp_path, "lab", "zephyr-dpo-1off", 0)
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    assert "zephyr-dpo-1off-seed0.json: damaged" in report.build(tmp_path, "lab")["lab/index.html"]


def test_summary_rows_of_the_demos_cells(results):
    rows = report.summary_rows(results, select.select("lab", "zephyr-dpo and (1off or 1on or 2off_off or 2off_on)"))
    assert [row.policy for row in rows] == ["Zephyr stand-in, DPO, start", "Zephyr stand-in, DPO, after off"]
    assert (rows[0].named, rows[0].better, rows[0].named_it) == ("off", "off", "yes")
    assert all(len(row.cells) == len(report.SummaryRow.HEADINGS) for row in rows)
    assert report.summary_rows(results, []) == []


def test_numbers_as_words():
    assert gain({"value": -0.204, "interval": [-0.3, 0.1]}) == "−0.20 [−0.30, +0.10]"
    assert score({"value": 0.314, "interval": None}) == "0.31"
    assert score({"value": None, "reason": "too near 0"}) == "no value: too near 0"
    assert [rate(1.5e-4), rate(3e-4), rate(5e-7)] == ["1.5e-4", "3e-4", "5e-7"]
    assert [duration(45.2), duration(200), duration(7500), duration(None)] == ["45 s", "3 min 20 s", "2 h 5 min", "–"]
    assert [count(1, "run"), count(2, "policy")] == ["1 run", "2 policies"]
    assert [listing([]), listing(["a", "b"]), listing(["a, 1", "b"])] == ["none", "a and b", "a, 1; b"]
    assert plain(None) == "–"


def test_large_numbers_in_three_digits():
    numbers = (0, 12, 999, 999.6, 1_000, 48_908_000, 999_949, 999_950, 1_022_739_000, 3.2e12)
    assert [brief(one) for one in numbers] == [
        "0", "12", "999", "1.00k", "1.00k", "48.9M", "1.00M", "1.00M", "1.02G", "3.20T",
    ]  # fmt: skip


def test_known_numbers_keep_their_source():
    assert {one.source for one in paper.KNOWN} <= paper.EVIDENCE.keys()
    zephyr = {
        name: paper.known("zephyr", "start", name).value for name in ("gain_on", "gain_off", "effectiveness_ratio")
    }
    assert zephyr["gain_on"] / zephyr["gain_off"] == pytest.approx(zephyr["effectiveness_ratio"], abs=0.005)
    assert paper.text("pythia", "start", "boundary_score") == paper.NOT_FOUND
    assert paper.text("phi2", "after round 2", "boundary_score") == "below 0.5 (N)"
