"""Asking many questions: order, workers, a limit, giving up, an interrupt; each worked with requests of our own."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from stagealign.base.asking import Asking
from stagealign.base.errors import StagealignError
from stagealign.base.server import RequestFailed


def asking(reply, workers=3, parts=1, **changes):
    """Asks `reply(question, part, over)` for each part of a question; an answer is the parts, or why one failed."""
    return Asking(
        requests=lambda question: [lambda over, i=i: reply(question, i, over) for i in range(parts)],
        answer=lambda question, found: (question, tuple(str(one) for one in found)),
        failed=lambda answer: next((one for one in answer[1] if one == "down"), None),
        error=lambda reason: StagealignError(f"gone: {reason}"),
        workers=workers,
        **changes,
    )


def slow_when_even(question, part, over):
    time.sleep(0.05 if question % 2 == 0 else 0)
    return question * 10 + part


def down(question, part, over):
    raise RequestFailed("down")


def test_answers_in_order_and_as_they_come():
    every = [(n, (str(10 * n), str(10 * n + 1))) for n in range(20)]
    assert list(asking(slow_when_even, parts=2).in_order(range(20))) == every
    found = list(asking(slow_when_even, parts=2).as_completed(range(20)))
    assert sorted(found) == every
    assert found != every


def test_no_more_than_the_workers_are_under_way():
    lock, now, most = threading.Lock(), [0], [0]

    def reply(question, part, over):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    assert len(list(asking(reply, workers=4).in_order(range(40)))) == 40
    assert len(list(asking(reply, workers=4).as_completed(range(40)))) == 40
    assert most == [4]


def test_a_question_without_requests_is_answered_at_once():
    assert list(asking(down, parts=0).in_order([1, 2])) == [(1, ()), (2, ())]
    assert sorted(asking(down, parts=0).as_completed([1, 2])) == [(1, ()), (2, ())]


@pytest.mark.parametrize("way", ["in_order", "as_completed"])
def test_failures_in_a_row_stop_and_what_came_before_is_given(way):
    def reply(question, part, over):
        if question > 5:
            raise RequestFailed("down")
        return "up"

    given = []
    with pytest.raises(StagealignError, match="gone: down"):
        given.extend(getattr(asking(reply, workers=1, give_up=4), way)(range(100)))
    assert [answer for _, (answer,) in given] == ["up"] * 6 + ["down"] * 3


def test_one_success_in_between_starts_the_count_again():
    def reply(question, part, over):
        if question % 3:
            raise RequestFailed("down")
        return "up"

    assert len(list(asking(reply, give_up=3).in_order(range(30)))) == 30


@pytest.mark.parametrize("way", ["in_order", "as_completed"])
def test_a_limit_stops_asking_and_waits_for_what_is_under_way(way):
    asked = []

    def allowed(question, under_way):
        return len(asked) < 5

    def reply(question, part, over):
        asked.append(question)
        return "up"

    found = list(getattr(asking(reply, workers=1, allowed=allowed), way)(range(50)))
    assert [question for question, _ in found] == asked
    assert 5 <= len(asked) <= 7


def test_a_failed_request_makes_the_others_of_its_question_useless():
    overs = []

    def reply(question, part, over):
        if part == 0:
            raise RequestFailed("down")
        overs.append(over.wait(5))

    list(asking(reply, parts=2).in_order([1]))
    assert overs == [True]


def test_an_interrupt_keeps_what_is_under_way_as_completed_and_ends_at_once_in_order():
    kept, began = [], threading.Event()

    def reply(question, part, over):
        if question:
            began.set()
            over.wait(5)
        return "up"

    def interrupted(way):
        kept.clear()
        began.clear()
        with closing(way(range(50))) as answers:
            for _ in answers:
                began.wait(5)
                raise KeyboardInterrupt

    how = replace(asking(reply), answer=lambda question, found: kept.append(question), failed=lambda answer: None)
    with pytest.raises(KeyboardInterrupt):
        interrupted(how.in_order)
    assert kept == [0]
    with pytest.raises(KeyboardInterrupt):
        interrupted(how.as_completed)
    assert sorted(kept) == [0, 1, 2]


def test_an_error_that_is_no_failed_request_comes_through():
    def reply(question, part, over):
        raise StagealignError("another model")

    for way in ("in_order", "as_completed"):
        with pytest.raises(StagealignError, match="another model"):
            list(getattr(asking(reply), way)(range(5)))
