"""AlpacaEval's judge where its server misbehaves: answers that fail, other versions, dead servers, other models."""

import socket
import time

import pytest
from factory_alpaca import KEY, MODEL, needs_package, rows, server_answer

from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval import evaluate as alpaca

pytestmark = pytest.mark.usefixtures("own_home")


@needs_package
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"oops": 1}, "not a chat completion"),
        (
            {"model": MODEL, "choices": [{"message": {"content": "both"}}], "usage": {"prompt_tokens": 400}},
            "neither 'm' nor 'M'",
        ),
        (
            {
                "model": MODEL,
                "choices": [
                    {
                        "message": {"content": "x"},
                        "logprobs": {"content": [{"top_logprobs": [{"token": "x", "logprob": -1}]}]},
                    }
                ],
            },
            "neither",
        ),
    ],
)
def test_a_failed_answer_is_listed_and_asked_again(ask, server, body, reason):
    """One of 12 is 8%: unreliable. The next call asks for that one alone. It is a failure, never a draw."""
    server.odd = ("Task 7:", body)
    first = ask()
    ((item, why),) = first.failed
    assert item.prompt.startswith("Task 7:")
    assert reason in why
    assert len(first.preferences) == 11
    assert 1.5 not in first.preferences
    assert "1 failed: unreliable, as more than 1%" in first.sentence
    record = first.plain()
    assert record["failed"] == [{"prompt_index": 7, "prompt_hash": item.hash, "reason": why}]
    assert record["n"] == 12
    assert first.table()[7]["preference"] is None
    server.odd = None
    server.seen.clear()
    again = ask()
    assert server.asked == ["Task 7"]
    assert again.failed == []
    assert again.cost_now < first.cost_now
    assert again.spent.cost >= again.cost_now + 11 / 12 * first.cost_now * 0.9


@needs_package
def test_an_interrupt_keeps_every_answer(ask, server):
    class Heard(alpaca.Silent):
        count = 0

        def answered(self, done, total):
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(heard=Heard())
    asked = len(server.seen)
    assert 4 <= asked < 12
    assert ask().reliable
    assert len(server.seen) == len(set(server.asked)) == 12


@needs_package
def test_another_version_of_the_judge_is_refused(ask, server):
    server.odd = ("Task 3:", server_answer("gpt-4-other"))
    with pytest.raises(StagealignError, match=r"the server now names .*never mixed: `--served"):
        ask(workers=1)
    server.odd = None
    with pytest.raises(StagealignError, match="2 versions of the judge: gpt-4-1106-preview, gpt-4-other"):
        ask()
    found = ask(served=MODEL)
    assert found.reliable
    assert found.judge["served"] == MODEL
    server.seen.clear()
    server.name = "gpt-4-other"
    other = ask(served="gpt-4-other")
    assert other.reliable
    assert len(server.seen) == 11  # one is kept
    assert other.judge["served"] == "gpt-4-other"


@needs_package
def test_a_refused_key_stops_at_once_and_a_dead_server_soon(ask, server):
    server.always = (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(StagealignError, match=r"HTTP 401.*\[key\].*what was answered is kept"):
        ask()
    assert len(server.seen) <= 4
    server.seen.clear()
    server.always = (500, {}, {"error": "down"})
    with pytest.raises(StagealignError, match="HTTP 500"):
        ask(workers=4)
    assert len(server.seen) == 2  # one prompt alone, two attempts


@needs_package
def test_a_judge_that_dies_in_the_middle_is_still_asked_again(ask, server, monkeypatch):
    whole = server.answer

    def dies(request):
        if len(server.seen) > 1:
            server.always = (500, {}, {"error": "down"})
        return whole(request)

    monkeypatch.setattr(server, "answer", dies)
    with pytest.raises(StagealignError, match="HTTP 500"):
        ask(workers=1)
    assert len(server.seen) >= 2 + 2 * 9  # it answered, then ten prompts, two attempts each
    server.always = None
    monkeypatch.setattr(server, "answer", whole)
    assert len(ask().preferences) == 12


@needs_package
@pytest.mark.parametrize("judge", ["official", "judge:m"])
def test_a_judge_that_is_not_there_is_said_within_seconds(files, judge, monkeypatch):
    """With the attempts and waits of real use: they would take over a minute."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    closed.close()
    request = alpaca.EvaluationRequest(*files(), judge=judge, judge_url=url, spend=1.0, price="1,1")
    started = time.monotonic()
    with pytest.raises(StagealignError, match=r"cannot connect.*\(3 attempts\)"):
        alpaca.evaluate(request)
    assert time.monotonic() - started < 10


@needs_package
def test_equal_texts_are_draws_and_missing_ones_failures(ask, server):
    """Three of 300 are missing, 1%: still reliable. The judge sees neither."""
    outputs, baseline = rows(300, "good", "outputs"), rows(300, "fair", "baseline")
    outputs[5]["output"] = baseline[5]["output"]
    found = ask(outputs[:297], baseline, workers=8)
    assert found.drawn == 1
    assert found.answers[found.battle.items[5].hash].preference == 1.5
    assert [(item.index, why) for item, why in found.failed] == [(i, "no completion given") for i in (297, 298, 299)]
    assert found.reliable
    assert "over 297 of 300 prompts; 3 failed" in found.sentence
    assert [row["prompt_index"] for row in found.table()] == list(range(297))  # nothing was compared on the others
    assert len(server.seen) == 296


@needs_package
def test_a_judge_without_logprobs_is_read_by_its_text(ask, server):
    """Its letter is the whole verdict: the better one always wins, and a draw is not possible."""
    server.logprobs, server.name = False, "judge-1"
    found = ask(judge="judge:mine", spend=None)
    assert found.judge["style"] == "text"
    assert found.judge["model"] == "mine"
    assert found.metric["value"] == 100.0
    assert found.spent.cost is None
    assert server.asked[:2] == ["Say yes"] * 2


@needs_package
def test_a_priced_judge_of_another_name(ask, server):
    found = ask(judge="judge:mine", price="2,6", spend=1.0)
    assert found.judge["style"] == "logprobs"
    assert (
        found.cost_now
        >= found.spent.cost
        == pytest.approx((2 * found.spent.prompt_tokens + 6 * found.spent.completion_tokens) / 1e6)
    )
    assert found.spent.completion_tokens == 12


@needs_package
def test_a_judge_that_changed_between_calls_is_refused(ask, server):
    ask(judge="judge:mine", spend=None)
    server.name = "newer"
    with pytest.raises(StagealignError, match="2 versions of the judge: gpt-4-1106-preview, newer"):
        ask(judge="judge:mine", spend=None)
    assert ask(judge="judge:mine", spend=None, served="newer").judge["served"] == "newer"
