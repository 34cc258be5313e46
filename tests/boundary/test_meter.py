"""The meter on made-up policies and oracles: what it counts, keeps, and when it stops."""

import json
import random
import time

import pytest

from stagealign.base.errors import BadData, StagealignError
from stagealign.boundary.meter import Meter, batches, kept_at, measure
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.scoring.contest import BudgetSpent, Judged
from stagealign.store.kept import Kept

ITEMS = [MeterPrompt(f"{i:04x}", f"prompt {i}", ("good static", "bad")) for i in range(400)]


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
    return [SampledPrompt((f"one {item.key}", f"two {item.key}"), 8, 1) for item in items]


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


@pytest.mark.parametrize("decide", [None, 0.95])
def test_the_running_score_has_a_point_a_prompt_and_not_too_many(decide):
    short = measure(ITEMS[:40], meter(Coin(0.5)), {}, decide=decide)
    assert [prompts for prompts, *_ in short.running] == list(range(1, 41))
    prompts, score, low, high = short.running[-1]
    assert (prompts, score, (low, high)) == (40, short.boundary_score, short.interval)
    first = measure(ITEMS[:7], meter(Coin(0.5)), {}, decide=decide)
    assert short.running[6] == first.running[-1]
    items = [MeterPrompt(f"{i:05x}", f"prompt {i}", ("good static", "bad")) for i in range(1000)]
    long = measure(items, meter(Coin(0.5)), {}, decide=decide)
    assert len(long.running) <= 200
    assert long.running[-1][0] == 1000
    assert [row[0] for row in long.running] == sorted({row[0] for row in long.running})


def test_the_cost_is_of_the_measurement_and_of_the_call(tmp_path):
    """8 tokens a prompt sampled, 5 a verdict billed; each sampled prompt takes a while."""

    class Billed(Coin):
        tokens = 3  # for a first question

        def judge(self, contests):
            for verdict in super().judge(contests):
                self.tokens += 5
                yield verdict

    def slow(items):
        time.sleep(0.05)
        return sampler(items)

    def found(count):
        oracle = Billed(0.7)
        kept = kept_at(tmp_path, {"p": 1}, oracle.identity)
        return measure(ITEMS[:count], Meter(slow, oracle, *kept, lambda: oracle.tokens), {}, epoch_tokens=1000)

    first = found(20).cost
    assert (first["sampled_tokens"], first["oracle_tokens"]) == (160, 103)
    assert first["share_of_dpo_epoch"] == 160 / 4000
    assert first["seconds"]["sampling"] >= 0.05
    assert first["this_call"]["sampled_tokens"] == 160
    again = found(20).cost
    assert (again["sampled_tokens"], again["oracle_tokens"]) == (160, 103)
    assert again["seconds"] == first["seconds"]
    assert again["share_of_dpo_epoch"] == first["share_of_dpo_epoch"]
    assert again["prompts_not_timed"] == 0
    assert (again["this_call"]["sampled_tokens"], again["this_call"]["oracle_tokens"]) == (0, 3)
    assert "sampling" not in again["this_call"]["seconds"]
    more = found(30).cost
    assert (more["sampled_tokens"], more["this_call"]["sampled_tokens"]) == (240, 80)
    fewer = found(5).cost
    assert fewer["sampled_tokens"] == 40
    assert fewer["seconds"]["sampling"] == pytest.approx(first["seconds"]["sampling"] / 4, abs=0.02)


def test_rows_kept_without_their_time_are_counted(tmp_path):
    sampled, verdicts = kept_at(tmp_path, {"p": 1}, {"kind": "coin"})
    for item in ITEMS[:3]:
        (one,) = sampler([item])
        sampled.add({"key": item.key, "completions": one.completions, "tokens": 8, "truncated": 0})
    found = measure(ITEMS[:10], meter(Coin(0.7), sampled, verdicts), {})
    assert found.cost["prompts_not_timed"] == 3
    assert found.cost["sampled_tokens"] == 80


def test_failures_are_counted_and_never_votes():
    fails = [item.prompt for item in ITEMS[:10]]
    found = measure(ITEMS, meter(Coin(0.7, fails)), {})
    assert found.failures == 10
    assert found.prompts_used == len(ITEMS) - 10
    assert not found.reliable
    assert measure(ITEMS, meter(Coin(0.7, fails[:4])), {}).reliable


def test_all_failures_are_an_error():
    with pytest.raises(BadData, match="failed on all 256 prompts"):
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
    first = Kept(path)
    for key, x in (("a", 1), ("b", 2)):
        first.add({"key": key, "x": x})
    assert first.get("a") == {"key": "a", "x": 1}
    path.write_bytes(path.read_bytes()[:-5])
    kept = Kept(path)
    assert kept.get("a") == {"key": "a", "x": 1}
    assert kept.get("b") is None
    kept.add({"key": "c", "x": 3})
    assert Kept(path).get("c") == {"key": "c", "x": 3}


def test_an_interrupt_gives_what_is_known_so_far():
    class Impatient(Coin):
        def judge(self, contests):
            if len(self.asked) >= 32:
                raise KeyboardInterrupt
            yield from super().judge(contests)

    found = measure(ITEMS, meter(Impatient(0.5)), {}, decide=0.95)
    assert 0 < found.prompts_used < len(ITEMS)
    assert found.stopped == "interrupted"


@pytest.mark.parametrize("decide", [None, 0.95])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), BudgetSpent("no more than 100 tokens")])
def test_verdicts_of_a_batch_that_was_not_finished_count(tmp_path, decide, error):
    class Ends(Coin):
        def judge(self, contests):
            for place, verdict in enumerate(super().judge(contests)):
                if place == 5:
                    raise error
                yield verdict

    sampled, verdicts = kept_at(tmp_path, {"p": 1}, {"o": 1})
    found = measure(ITEMS, meter(Ends(0.5), sampled, verdicts), {}, decide=decide)
    assert found.prompts_used == found.running[-1][0] == 5
    assert found.stopped == (str(error) or "interrupted")
    assert sorted(kept_at(tmp_path, {"p": 1}, {"o": 1})[1].places) == sorted(item.key for item in ITEMS[:5])


def test_completions_of_a_batch_that_was_not_finished_are_kept(tmp_path):
    def breaks(items):
        yield from sampler(items[:7])
        raise StagealignError("gone")

    sampled, verdicts = kept_at(tmp_path, {"p": 1}, {"o": 1})
    with pytest.raises(StagealignError, match="gone"):
        measure(ITEMS, Meter(breaks, Coin(0.7), sampled, verdicts), {})
    asked = []

    def counts(items):
        asked.extend(item.key for item in items)
        return sampler(items)

    measure(ITEMS, Meter(counts, Coin(0.7), *kept_at(tmp_path, {"p": 1}, {"o": 1})), {})
    assert asked == [item.key for item in ITEMS[7:]]


def test_a_prompt_that_the_policy_cannot_answer_is_a_failure():
    def refuses(items):
        pairs = zip(items, sampler(items), strict=True)
        return [SampledPrompt((), 0, 0, "too long") if item is ITEMS[2] else one for item, one in pairs]

    oracle = Coin(0.7)
    found = measure(ITEMS, meter(oracle), {})
    found = measure(ITEMS, Meter(refuses, oracle, Kept(None), Kept(None)), {})
    assert (found.failures, found.failure, found.prompts_used) == (1, "too long", len(ITEMS) - 1)
    assert found.reliable


def test_pairs_vote_for_themselves_and_lengths_follow_them():
    """on1 beats off1, off2 beats on1, on2 beats off2 and ties with off1; the scores say nothing of it."""

    class Pairs:
        def judge(self, contests):
            return (Judged((0.0, 0.0), (0.0, 0.0), won=(1.0, 0.0, 0.5, 1.0)) for _ in contests)

    def wrote(items):
        return [SampledPrompt(("aaaa", "bb"), 2, 0) for _ in items]

    items = [MeterPrompt(f"{i}", "p", ("c", "ddd")) for i in range(10)]
    found = measure(items, Meter(wrote, Pairs(), Kept(None), Kept(None)), {})
    assert found.votes == {"on": 25.0, "off": 15.0, "ties": 10}
    assert found.caveats["ties"] == 0.25
    # decided pairs: aaaa > c, ddd > aaaa, bb > ddd
    assert (found.caveats["winner_characters"], found.caveats["loser_characters"]) == (3.0, 2.7)
    assert found.top_candidate["score"] == 0.5


def test_batches_hold_every_prompt_once_in_order():
    for growing in (False, True):
        cut = list(batches(ITEMS, growing))
        assert [item for batch in cut for item in batch] == ITEMS
    sizes = [len(batch) for batch in batches(range(5000), True)]
    assert sizes[:7] == [16, 16, 16, 16, 16, 20, 25]
    done = [sum(sizes[:place]) for place in range(len(sizes))]
    assert all(size <= max(16, before / 4) for size, before in zip(sizes, done, strict=True))
    assert max(sizes) == 256


def test_a_measurement_is_json_ready():
    found = measure(ITEMS[:20], meter(Coin(0.7)), {"source": "toy"})
    plain = json.loads(json.dumps(found.plain()))
    assert {"boundary_score", "interval", "stage", "prompts_used", "votes"} <= plain.keys()
    assert plain["caveats"]["truncated_by_policy"] == 0.5
    assert plain["caveats"]["changed_with_order"] == 0.25
