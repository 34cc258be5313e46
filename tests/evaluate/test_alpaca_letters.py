"""AlpacaEval by judges whose letters hold little probability, or that answer in words, or share one name."""

import math

import pytest
from factory_alpaca import needs_client, needs_package

from stagealign.base.errors import StagealignError

pytestmark = [pytest.mark.usefixtures("own_home"), needs_package, needs_client]


def little(server, share, where=""):
    """The judge's letters keep their odds but hold this share of its next token, for prompts that hold `where`."""
    whole = server.answer

    def answer(request):
        body = whole(request)
        if where in request["messages"][-1]["content"] and "logprobs" in body["choices"][0]:
            (content,) = body["choices"][0]["logprobs"]["content"]
            letters = [one for one in content["top_logprobs"] if one["token"] in ("m", "M")]
            mass = sum(math.exp(one["logprob"]) for one in letters)
            for one in letters:
                one["logprob"] += math.log(share / mass)
            content["top_logprobs"].append({"token": "The", "logprob": math.log(0.4)})
        return body

    server.answer = answer


@pytest.mark.parametrize(("share", "reliable"), [(0.55, True), (0.45, False), (1e-6, False)])
def test_little_mass_is_counted_and_marked(ask, server, share, reliable):
    """The official annotator reads the odds of the letters, whatever their mass: its number stays, and is marked."""
    before = ask().metric["value"]
    little(server, share)
    found = ask(served=None, baseline=None, keep=False)
    assert found.metric["value"] == pytest.approx(before, abs=1e-6)
    assert found.reliable == reliable
    assert len(found.little_mass) == found.plain()["little_mass"] == (0 if reliable else 12)
    assert ("12 by letters that are mostly not the judge's answer: unreliable" in found.sentence) != reliable
    assert any("less than 50% of its next token: 12; prompt 0 'Task 0" in line for line in found.details) != reliable


def test_one_of_many_with_little_mass_is_counted_only(ask, server):
    from factory_alpaca import rows

    little(server, 0.1, "Task 3:")
    found = ask(rows(120, "good", "outputs"), rows(120, "fair", "baseline"), workers=8)
    assert found.reliable
    assert [item.index for item in found.little_mass] == [3]
    assert "1 by letters" in found.sentence


def test_a_judge_with_little_mass_is_read_by_its_text(ask, server):
    little(server, 1e-6)
    found = ask(judge="judge:mine", spend=None)
    assert found.judge["style"] == "text"
    assert found.metric["value"] == 100.0
    assert found.reliable


@pytest.mark.parametrize(
    "write",
    [
        "Model {0} is better.".format,
        '{{"winner": "{0}"}}'.format,
        "**{0}**".format,
        "<think>m or M?</think>{0}".format,
        "Both are fine, and I had to think about it for long.\nAnswer: {0}".format,
    ],
)
def test_a_judge_may_answer_in_its_own_words(ask, server, write):
    server.logprobs, whole = False, server.answer

    def answer(request):
        body = whole(request)
        (choice,) = body["choices"]
        words = write(choice["message"]["content"]).split(" ")
        choice["message"]["content"] = " ".join(words[: request["max_tokens"]])
        choice["finish_reason"] = "length" if len(words) > request["max_tokens"] else "stop"
        return body

    server.answer = answer
    found = ask(judge="judge:mine", spend=None)
    assert found.metric["value"] == 100.0
    assert found.reliable


def test_a_judge_without_a_verdict_is_refused_by_what_it_answered(ask, server):
    server.logprobs = False
    server.always = (200, {}, {"model": "x", "choices": [{"message": {"content": "m and M are both fine"}}]})
    with pytest.raises(StagealignError, match="answered 'm and M are both fine', neither 'm' nor 'M'; name a judge"):
        ask(judge="judge:mine", spend=None)


def test_other_weights_behind_a_name_are_asked_again(ask, server):
    ask(judge="judge:mine", spend=None)
    asked = len(server.seen)
    assert asked > 12
    ask(judge="judge:mine", spend=None)
    assert len(server.seen) == asked + 1, "the small question alone"
    server.says = "I am the second judge"
    ask(judge="judge:mine", spend=None)
    assert len(server.seen) == asked + 2 + 12
