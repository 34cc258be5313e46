"""The meter on made-up policies and oracles: what it counts, keeps, and when it stops."""

import json
import random

import pytest

from stagealign.errors import BadData
from stagealign.judged import Judged
from stagealign.meter import Item, Kept, Meter, Sampled, batches, kept_at, measure

ITEMS = [Item(f"{i:04x}", f"prompt {i}", ("good static", "bad")) for i in range(400)]


class Coin:
    """An oracle to which the policy's candidates are better with a fixed chance, drawn by prompt."""

    def __init__(self, chance, fails=()):
        self.identity = {"kind": "coin"}
        self.chance, self.fails, self.asked = chance, set(fails), []

    def judge(self, contests):
        for contest in contests:
            self.asked.append(contest.prompt)
            draw = random.Random(contest.prompt)
            if contest.prompt in self.fails:
                yield Judged((), (), failed="no answer")
            else:
                yield Judged(tuple(float(draw.random() < self.chance) * 2 for _ in contest.on), (1.0, 1.0), 4, 1, 0)


def sampler(items):
    return [Sampled((f"one {item.key}", f"two {item.key}"), 8, 1) for item in items]


def meter(oracle, sampled=None, verdicts=None):
    return Meter(sampler, oracle, sampled or Kept(None), verdicts or Kept(None))


def test_the_score_is_the_share_of_votes_won_and_votes_add_up():
    found = measure(ITEMS, meter(Coin(0.7)), {})
    assert found.prompts_used == len(ITEMS)
    assert found.votes["on"] + found.votes["off"] == 4 * len(ITEMS)
    assert found.boundary_score == found.votes["on"] / (4 * len(ITEMS))
    assert found.interval[0] < 0.7 < found.interval[1]
    assert found.stage == "fine-tuning"
    assert "on-policy" in found.sentence


@pytest.mark.parametrize(("chance", "stage"), [(0.2, "injection"), (0.8, "fine-tuning")])
def test_a_decision_stops_early_and_names_the_stage(chance, stage):
    found = measure(ITEMS, meter(Coin(chance)), {}, decide=0.95)
    assert found.stage == stage
    assert found.prompts_used < 60
    assert found.decision["decided"]
    assert found.interval[0] <= found.boundary_score <= found.interval[1]


def test_an_undecided_budget_says_how_many_prompts_would_do():
    found = measure(ITEMS[:60], meter(Coin(0.5)), {}, decide=0.95)
    assert found.stage == "undecided"
    assert found.decision["prompts_needed"] is None or found.decision["prompts_needed"] > 60
    assert "Undecided" in found.sentence


def test_failures_are_counted_and_never_votes():
    fails = [item.prompt for item in ITEMS[:10]]
    found = measure(ITEMS, meter(Coin(0.7, fails)), {})
    assert found.failures == 10
    assert found.prompts_used == len(ITEMS) - 10
    assert not found.reliable
    assert measure(ITEMS, meter(Coin(0.7, fails[:4])), {}).reliable


def test_all_failures_are_an_error():
    with pytest.raises(BadData, match="failed on all 400 prompts"):
        measure(ITEMS, meter(Coin(0.7, [item.prompt for item in ITEMS])), {})


def test_nothing_is_measured_twice_and_failures_are_asked_again(tmp_path):
    first = Coin(0.7, [ITEMS[3].prompt])
    measure(ITEMS[:100], meter(first, *kept_at(tmp_path, {"p": 1}, first.identity)), {})
    second = Coin(0.7)
    sampled, verdicts = kept_at(tmp_path, {"p": 1}, second.identity)
    again = measure(ITEMS, Meter(sampler, second, sampled, verdicts), {})
    assert ITEMS[3].prompt in second.asked
    assert len(second.asked) == len(ITEMS) - 99
    assert again.boundary_score == measure(ITEMS, meter(Coin(0.7)), {}).boundary_score
    other = kept_at(tmp_path, {"p": 2}, first.identity)
    assert not other[0].places


def test_a_line_that_an_interrupt_cut_is_dropped(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path).add([{"key": "a", "x": 1}, {"key": "b", "x": 2}])
    path.write_bytes(path.read_bytes()[:-5])
    kept = Kept(path)
    assert kept.get("a") == {"key": "a", "x": 1}
    assert kept.get("b") is None
    kept.add([{"key": "c", "x": 3}])
    assert Kept(path).get("c") == {"key": "c", "x": 3}


def test_an_interrupt_gives_what_is_known_so_far():
    class Impatient(Coin):
        def judge(self, contests):
            if len(self.asked) >= 32:
                raise KeyboardInterrupt
            yield from super().judge(contests)

    found = measure(ITEMS, meter(Impatient(0.5)), {}, decide=0.95)
    assert 0 < found.prompts_used < len(ITEMS)


def test_batches_hold_every_prompt_once_in_order():
    for growing in (False, True):
        cut = list(batches(ITEMS, growing))
        assert [item for batch in cut for item in batch] == ITEMS
    assert len(next(iter(batches(ITEMS, True)))) == 16


def test_a_measurement_is_json_ready():
    found = measure(ITEMS[:20], meter(Coin(0.7)), {"source": "toy"})
    plain = json.loads(json.dumps(found.plain()))
    assert {"boundary_score", "interval", "stage", "prompts_used", "votes"} <= plain.keys()
    assert plain["caveats"]["truncated_by_policy"] == 0.5
    assert plain["caveats"]["changed_with_order"] == 0.25
