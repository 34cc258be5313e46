"""Verdicts of an LLM judge: shares of comparisons in both orders, read from log-probs or texts."""

import pytest

pytest.importorskip("httpx")


pytest.importorskip("tenacity")

from factory_judge import KEY

from stagealign.oracle import judge as judging
from stagealign.scoring.contest import Contest

pytestmark = pytest.mark.usefixtures("secret_stays_secret")
CONTEST = Contest("Name a colour.", ("good red", "bad blue"), ("fair green", "fair grey"))


def test_scores_are_shares_of_comparisons_won(ask, server):
    """Good beats fair twice: 1; bad loses twice: 0; each fair wins one of two: 0.5."""
    judge = ask()
    (found,) = judge.judge([CONTEST])
    assert (found.on, found.off) == ((1.0, 0.0), (0.5, 0.5))
    assert found.won == (1.0, 1.0, 0.0, 0.0)
    assert (found.compared, found.changed, found.truncated, found.failed) == (4, 0, 0, None)
    assert judge.style == "text"
    assert len(server.seen) == 2 + 8  # a question a style, then four pairs in both orders
    assert judge.server.requests == 11  # and one that tells the model from another of its name
    assert judge.server.tokens == 70
    path, headers, request = server.seen[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["temperature"]) == ("judge", 0)


def test_a_verdict_that_changes_with_the_order_is_half_a_win_for_both(ask):
    (found,) = ask().judge([Contest("p", ("fair one",), ("fair other", "bad"))])
    assert (found.on, found.off, found.won) == ((0.75,), (0.5, 0.0), (0.5, 1.0))
    assert (found.compared, found.changed) == (2, 1)


def test_equal_texts_tie_without_being_asked(ask, server):
    judge = ask()
    judge.check()
    before = len(server.seen)
    (found,) = judge.judge([Contest("p", ("good",), ("good",))])
    assert (found.on, found.off, found.compared, found.failed) == ((0.5,), (0.5,), 0, None)
    assert len(server.seen) == before


def test_logprobs_are_used_where_they_are_served(ask, server):
    server.logprobs = True
    judge = ask()
    (found,) = judge.judge([CONTEST])
    assert (found.on, found.off) == ((1.0, 0.0), (0.5, 0.5))
    assert judge.style == "logprobs"
    assert {request["max_tokens"] for _, _, request in server.seen} == {1}


def test_a_judge_that_thinks_is_asked_in_its_own_way(ask, server):
    unknown = (400, {}, {"error": "max_tokens: unsupported"})
    server.acts = [(400, {}, {"error": "logprobs: unsupported"}), unknown, unknown]
    judge = ask()
    (found,) = judge.judge([CONTEST])
    assert judge.style == "thinking"
    assert found.on == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A", 1.0),
        (" b.", 0.0),
        ("**B**", 0.0),
        ("Response A", 1.0),
        ("The better response is B.", 0.0),
        ("Response B is better because it is shorter.", 0.0),
        ('{"winner": "A"}', 1.0),
        ("Tie", 0.5),
        ("<think>A or B? A\n</think>\n\nB", 0.0),
        ("A good question", None),
        ("A and B", None),
        ("", None),
        (None, None),
        ([1], None),
    ],
)
def test_what_counts_as_an_answer(text, wanted):
    assert judging.preference({"choices": [{"message": {"content": text}}]}, "text") == wanted


@pytest.mark.parametrize(
    ("top", "wanted"),
    [
        ([("A", -0.7), ("B", -2)], 1.0),
        ([("A", -2), ("B", -0.3)], 0.0),
        ([("A", -2), (" A", -0.9), ("B", -1.2)], 1.0),
        ([("A", -1), ("B", -1)], 0.5),
        ([("x", -0.1), ("B", -13.8)], None),  # a millionth of the mass
        ([("x", -0.6), ("A", -1), ("B", -3)], None),  # less than half
        ([("x", -1)], None),
        ([("A", float("nan")), ("B", -5)], None),
        ([("A", "high")], None),
        ([(3, -1)], None),
    ],
)
def test_the_likelier_letter_wins(top, wanted):
    logprobs = {"content": [{"top_logprobs": [{"token": token, "logprob": value} for token, value in top]}]}
    answer = {"choices": [{"logprobs": logprobs, "message": {"content": "A"}}]}
    assert judging.preference(answer, "logprobs") == wanted


def test_verdicts_keep_the_order_of_the_contests(ask):
    contests = [
        Contest(f"prompt {i}", (("good", "fair", "bad")[i % 3],), (("fair", "bad")[i % 2] + " x",)) for i in range(30)
    ]
    expected = [next(ask(workers=1).judge([one])) for one in contests[:6]]
    found = list(ask(workers=8).judge(contests))
    assert found[:6] == expected
    assert len(found) == 30
    assert list(ask().judge([])) == []
