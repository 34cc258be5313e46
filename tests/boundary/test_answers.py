"""What a measurement says: score, interval, stage, and why they may seem to disagree; when it stops."""

import json
import random

import pytest

from stagealign.base.errors import StagealignError
from stagealign.boundary.measure import measure_boundary
from stagealign.boundary.meter import Meter, measure
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.boundary.tally import Looks, Until, VoteTally
from stagealign.boundary.to_judge import write_pairs
from stagealign.report.pages.meter import fact_rows, page
from stagealign.scoring.contest import Judged
from stagealign.store.kept import Kept

ITEMS = [MeterPrompt(f"{i:04x}", f"prompt {i}", ("good static", "bad")) for i in range(400)]


class Coin:
    """An oracle to which the policy's candidates are better with a fixed chance, drawn by prompt."""

    def __init__(self, chance):
        self.chance = chance

    def judge(self, contests):
        for contest in contests:
            draw = random.Random(contest.prompt)
            yield Judged(tuple(float(draw.random() < self.chance) * 2 for _ in contest.on), (1.0, 1.0))


def meter(oracle):
    def sampler(items):
        return [SampledPrompt((f"one {item.key}", f"two {item.key}"), 8, 1) for item in items]

    return Meter(sampler, oracle, Kept(None), Kept(None))


def test_prompts_needed_are_told_only_where_nothing_was_decided():
    assert measure(ITEMS, meter(Coin(0.2)), {}, decide=0.95).decision["prompts_needed"] is None
    assert measure(ITEMS[:16], meter(Coin(0.55)), {}, decide=0.95).decision["prompts_needed"] > 16


def test_a_score_outside_of_its_running_interval_is_explained(monkeypatch):
    """Eight prompts for the policy, then 24 of the same batch against it: the looks had left 0.5 before."""
    monkeypatch.setattr("stagealign.boundary.meter.FIRST_BATCH", 32)

    class Turns:
        def judge(self, contests):
            for contest in contests:
                wins = int(contest.prompt.split()[1]) < 8
                yield Judged((2.0, 2.0) if wins else (0.0, 0.0), (1.0, 1.0))

    found = measure(ITEMS[:32], meter(Turns()), {}, decide=0.95)
    assert found.stage == "fine-tuning"
    low, high = found.interval
    assert not low <= found.boundary_score <= high
    assert found.decision["decided_at"] < found.prompts_used
    assert "The score is on the other side of 0.5: the stage was named after 6 prompts" in found.sentence
    note = f"the score, {found.boundary_score:.3f}, lies outside its interval, {low:.3f} to {high:.3f}"
    assert any(note in line for line in found.notes)
    assert not measure(ITEMS, meter(Coin(0.2)), {}, decide=0.95).notes
    assert not measure(ITEMS, meter(Coin(0.2)), {}).notes


def test_looks_that_rule_out_every_score_are_told():
    looks, tally, item = Looks.at(0.95, 1), VoteTally(), MeterPrompt("k", "p", ("y",))
    for i in range(200):
        tally.add(item, SampledPrompt(("x",), 1, 0), Judged((float(i < 100),), (0.5,)))
        looks.add(tally)
    assert any("exclude every score" in line for line in looks.remarks(0.5, 0.5))


def test_an_undecided_budget_says_how_many_prompts_would_do():
    found = measure(ITEMS[:60], meter(Coin(0.5)), {}, decide=0.95)
    assert found.stage == "undecided"
    assert found.decision["prompts_needed"] is None or found.decision["prompts_needed"] > 60
    assert "Undecided" in found.sentence


def test_an_interval_says_what_it_is():
    fixed, decided = measure(ITEMS, meter(Coin(0.6)), {}), measure(ITEMS, meter(Coin(0.6)), {}, decide=0.95)
    assert fixed.interval_kind == "95% over prompts, if their number was fixed beforehand"
    assert "95% interval" in fixed.sentence
    assert decided.interval_kind.startswith("anytime-valid: both ends together hold at 0.95 however often one looks")
    assert decided.interval_kind.endswith("each at 0.975")
    assert "at 0.95 however often one looks" in decided.sentence
    low, high = decided.top_candidate["interval"]
    assert low <= decided.top_candidate["score"] <= high


def test_the_interval_of_a_sequence_misses_as_seldom_as_it_says():
    """At a known score, over all looks: both ends together miss in at most 5% of streams, and so does the name."""
    rng, missed, wrong = random.Random(7), 0, 0
    streams, truth = 150, 0.55
    for _ in range(streams):
        looks, tally, item = Looks.at(0.95, 1), VoteTally(), MeterPrompt("k", "p", ("y",))
        for _ in range(60):
            won = float(rng.random() < truth)
            tally.add(item, SampledPrompt(("x",), 1, 0), Judged((won,), (0.5,)))
            looks.add(tally)
        low, high = looks.cross.interval
        missed += not low <= truth <= high
        wrong += looks.cross.stage == "injection"
    assert missed <= 0.05 * streams
    assert wrong <= 0.05 * streams


@pytest.mark.parametrize(("chance", "inside"), [(0.6, True), (0.58, False)])
def test_a_stage_whose_interval_contains_a_half_says_why(chance, inside):
    """The stage is named at 0.95 by one end; the interval's ends hold at 0.975 each, so it may be named first."""
    found = measure(ITEMS, meter(Coin(chance)), {}, decide=0.95)
    low, high = found.interval
    assert found.stage == "fine-tuning"
    assert (low < 0.5 < high) == inside
    why = "0.5 is inside the interval because its two ends hold together at 0.95; the stage needs only one end at 0.95."
    assert found.sentence.endswith(why) == inside


@pytest.mark.parametrize("level", [None, 0.9])
def test_an_indifference_zone_ends_a_measurement_of_equals(level):
    """A coin of 0.5: without a zone it never ends; with one the interval lies in it, and the advice is to save."""
    items = [MeterPrompt(f"{i:05x}", f"prompt {i}", ("good static", "bad")) for i in range(2000)]
    found = measure(items, meter(Coin(0.5)), {}, decide=Until.asked(level, 0.08))
    assert found.stage == "no practical difference"
    low, high = found.interval
    assert 0.42 <= low <= high <= 0.58
    assert (found.decision["level"], found.decision["indifference"]) == (level or 0.95, 0.08)
    assert found.decision["decided"]
    assert found.decision["decided_at"] <= found.prompts_used < 400
    assert found.decision["prompts_needed"] is None
    assert found.collect.startswith("collect either kind of data")
    assert found.sentence.startswith("No practical difference, within 0.08 of 0.5: collect either kind")
    assert json.loads(json.dumps(found.plain()))["stage"] == "no practical difference"
    assert measure(items[:400], meter(Coin(0.5)), {}, decide=0.95).stage == "undecided"


def test_an_indifference_zone_leaves_a_clear_stage_alone():
    found = measure(ITEMS, meter(Coin(0.8)), {}, decide=Until(0.95, 0.05))
    assert found.stage == measure(ITEMS, meter(Coin(0.8)), {}, decide=0.95).stage == "fine-tuning"
    assert Until.asked(None, None) is None


def test_an_early_stop_shows_the_corrected_score_beside_the_share():
    found = measure(ITEMS, meter(Coin(0.58)), {}, decide=0.95)
    assert found.decision["decided"]
    assert found.prompts_used > 8
    assert 0.5 < found.estimate < found.boundary_score
    assert found.estimate_kind.startswith("unbiased under the stopping rule")
    shown = f"boundary score {found.estimate:.2f} from {found.prompts_used} prompts, {found.boundary_score:.2f} before"
    assert f"{shown} correction for when it stopped" in found.sentence
    assert found.top_candidate["estimate"] < found.top_candidate["score"]
    again = measure(ITEMS, meter(Coin(0.58)), {}, decide=0.95)
    assert (again.estimate, again.top_candidate) == (found.estimate, found.top_candidate)


def test_without_an_early_stop_the_estimate_is_the_share():
    for found in (measure(ITEMS, meter(Coin(0.6)), {}), measure(ITEMS, meter(Coin(1.0)), {}, decide=0.95)):
        assert found.estimate == found.boundary_score
        assert found.top_candidate["estimate"] == found.top_candidate["score"]
        assert found.estimate_kind.startswith("share of votes won: no vote could end")
        assert "correction" not in found.sentence


def test_an_estimate_that_cannot_be_corrected_says_so(monkeypatch):
    monkeypatch.setattr("stagealign.boundary.tally.unstopped_shares", lambda *_: None)
    found = measure(ITEMS, meter(Coin(0.58)), {}, decide=0.95)
    assert found.estimate is None
    assert found.top_candidate["estimate"] is None
    said = f"boundary score {found.boundary_score:.2f} from {found.prompts_used} prompts, which the early stop inflates"
    assert said in found.sentence
    assert found.estimate_kind.startswith("not known")


def test_a_fixed_interval_that_may_be_too_narrow_is_told():
    """Forty prompts that all vote 3 : 1 say nothing of rare ones; a sequence needs no such warning."""

    class Alike:
        def judge(self, contests):
            return (Judged((2.0, 0.0), (1.0, -1.0)) for _ in contests)

    (note,) = measure(ITEMS[:40], meter(Alike()), {}).notes
    assert "may be too narrow: all prompts vote alike" in note
    assert any("rests on 20 prompts" in line for line in measure(ITEMS[:20], meter(Alike()), {}).notes)
    assert not measure(ITEMS[:40], meter(Alike()), {}, decide=0.95).notes


def test_the_page_shows_estimate_zone_and_share():
    found = measure(ITEMS, meter(Coin(0.58)), {}, decide=Until(0.95, 0.02))
    said = dict(fact_rows(found))
    assert said["score"] == f"{found.estimate_kind}; share of votes won {found.boundary_score:.3f}"
    assert f"share of votes won {found.top_candidate['score']:.2f}" in said["by top candidate"]
    text = page(found)
    assert "Diamond: the boundary score, corrected for when the measurement stopped." in text
    assert "Dotted: scores without a practical difference." in text
    plain = page(measure(ITEMS[:40], meter(Coin(0.58)), {}))
    assert "Diamond" not in plain
    assert "Dotted" not in plain


@pytest.mark.parametrize("zone", [0, -0.05, 0.5, 1, float("nan")])
def test_a_zone_that_is_none_is_refused_before_anything_is_loaded(zone):
    with pytest.raises(StagealignError, match=r"^--indifference .*: not between 0 and 0.5; 0.05 stops when"):
        measure_boundary(oracle="recorded:absent.jsonl", indifference=zone)


def test_a_zone_alone_is_decided_at_95_percent(tmp_path):
    rows = [
        {
            "prompt": f"p{n}",
            "source": source,
            "completion": f"{source} {n}",
            "score": float((source == "on") == (n % 2)),
        }
        for n in range(400)
        for source in ("on", "off")
    ]
    file = tmp_path / "scored.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = measure_boundary(oracle=f"recorded:{file}", indifference=0.2)
    assert (found.stage, found.decision["level"], found.request["indifference"]) == (
        "no practical difference", 0.95, 0.2,
    )  # fmt: skip
    assert 0.3 <= found.interval[0] <= found.interval[1] <= 0.7
    assert found.prompts_used < 400


def test_a_zone_is_no_option_of_writing_pairs(tmp_path):
    with pytest.raises(StagealignError, match="--indifference with --pairs: not used"):
        write_pairs(BoundaryRequest("p", "d.jsonl", indifference=0.05), tmp_path / "new.csv")
