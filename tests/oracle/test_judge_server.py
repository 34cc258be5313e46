"""An LLM judge's server that misbehaves: what is tried again, what stops the run, and the key that shows nowhere."""

import threading
import time

import pytest

pytest.importorskip("httpx")


pytest.importorskip("tenacity")

from factory_judge import KEY, Judge

from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint
from stagealign.base.server import KEYS, RequestFailed, Server, checked_url
from stagealign.oracle import judge as judging
from stagealign.oracle.judge import connect
from stagealign.scoring.contest import BudgetSpent, Contest

pytestmark = pytest.mark.usefixtures("secret_stays_secret")
CONTEST = Contest("Name a colour.", ("good red", "bad blue"), ("fair green", "fair grey"))


def slow(_):
    time.sleep(0.6)


@pytest.mark.parametrize(
    "act",
    [
        (429, {}, {"error": "slow down"}),
        (429, {"Retry-After": "0"}, b""),
        (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b"busy"),
        (500, {}, b"\x00\xff broken \x1b[31m"),
        (200, {}, b"<html>garbage</html>"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": "A"}]}),
        (200, {}, b"[" * 100_000),
        (200, {"Content-Length": "500"}, b'{"model": "judge-1", "choi'),
        (200, {}, slow),
    ],
    ids=["429", "429 wait", "503 date", "500", "garbage", "no choice", "no message", "deep", "half a body", "slow"],
)
def test_what_may_pass_is_retried(ask, server, act):
    judge = ask(timeout=0.3)
    judge.check()
    server.acts = [act, None, None, act]
    found = list(judge.judge([CONTEST, CONTEST]))
    assert [one.failed for one in found] == [None, None]
    assert [one.on for one in found] == [(1.0, 0.0)] * 2
    assert judge.server.requests == 2 + 1 + 16 + 2


def test_the_wait_that_a_server_asks_for_is_kept(ask, server):
    judge = ask()
    judge.check()
    server.acts = [(429, {"Retry-After": "0.4"}, b"")]
    started = time.monotonic()
    list(judge.judge([Contest("p", ("good",), ("bad",))]))
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize(
    ("always", "reason"),
    [
        ((500, {}, {"error": f"key {KEY} is fine"}), r"HTTP 500: .*\[key\] is fine.*\(3 attempts\)"),
        ((401, {}, {"error": f"Incorrect API key provided: {KEY}"}), r"HTTP 401: .*\[key\]"),
        ((404, {}, b"\x1b[31mno such model"), r"HTTP 404: \[31mno such model; "),
        ((302, {"Location": "http://192.0.2.1/"}, b""), r"HTTP 302: nothing; "),
        ((200, {}, f"garbage {KEY}".encode()), r"not a chat completion: garbage \[key\] \(3 attempts\)"),
        ((200, {}, b" " * 5_000_000), r"more than 4,000,000 bytes"),
        ((200, {}, slow), r"within 0\.3 s \(3 attempts\)"),
        (
            (200, {}, {"choices": [{"message": {"content": f"I am {KEY}"}}]}),
            r"answered 'I am \[key\]' where one letter",
        ),
    ],
    ids=["500", "401", "404", "redirect", "garbage", "flood", "never", "chatty"],
)
def test_a_judge_that_does_not_answer_is_an_error_before_any_work(server, always, reason):
    server.always = always
    with pytest.raises(StagealignError, match=reason) as caught:
        connect("judge", Server(server.url, timeout=0.3, attempts=3, backoff=0.01))
    assert KEY not in str(caught.value) + repr(caught.value)
    assert server.url in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_judge_that_is_not_there_is_an_error_before_any_work(server):
    closed = Judge()
    url = closed.url
    closed.server_close()
    started = time.monotonic()
    with pytest.raises(StagealignError, match=r"cannot connect.*\(2 attempts\)"):
        connect("judge", Server(url, attempts=2, backoff=0.01))
    assert time.monotonic() - started < 5


def test_a_failed_prompt_is_a_failure_with_its_reason_and_the_others_count(ask, server):
    judge = ask()
    judge.check()

    def angry(request):
        return b"{}" if "angry" in request["messages"][0]["content"] else server.answer(request)

    server.always = (200, {}, angry)
    found = list(judge.judge([CONTEST, Contest("angry", ("good",), ("bad",)), CONTEST]))
    assert [one.failed is None for one in found] == [True, False, True]
    assert found[1].failed == "not a chat completion: {} (3 attempts)"
    assert (found[1].on, found[1].off) == ((), ())
    server.always = (200, {}, {"model": "judge-1", "choices": [{"message": {"content": "Both are nice"}}]})
    (found,) = judge.judge([CONTEST])
    assert found.failed == "answered 'Both are nice' where one letter was asked for"


def test_a_judge_stops_once_its_tokens_are_spent(ask, server):
    """7 tokens an answer and 8 answers a contest: 56; those under way are waited for and given."""
    judge = ask(workers=1)
    judge.check()
    judge.most_tokens = judge.server.tokens + 100
    given = []
    with pytest.raises(BudgetSpent, match=r"tokens billed of at most 114; .* --max-judge-tokens"):
        given.extend(one for one in judge.judge([CONTEST] * 50))
    assert 2 <= len(given) <= 5
    assert all(one.failed is None for one in given)
    assert judge.server.tokens <= 114 + 3 * 56
    judge.most_tokens = None
    assert len(list(judge.judge([CONTEST] * 3))) == 3


def test_a_server_that_is_gone_stops_the_run(ask, server, monkeypatch):
    monkeypatch.setattr(judging, "GIVE_UP", 3)
    judge = ask(attempts=1)
    judge.check()
    server.always = (500, {}, b"down")
    given = []
    with pytest.raises(StagealignError, match="3 prompts in a row failed, the last with HTTP 500: down"):
        given.extend(one for one in judge.judge([CONTEST] * 50))
    assert judge.server.requests < 2 + 20 * 8


def test_another_model_name_is_refused(ask, server):
    judge = ask(workers=1)
    before = judge.identity
    known = {"kind": "judge", "version": 3, "model": "judge", "served": "judge-1", "style": "text"}
    assert before == known | {"weights": judge.weights}
    verdicts = judge.judge([CONTEST] * 5)
    assert next(verdicts).failed is None
    server.name = "judge-2"
    with pytest.raises(StagealignError, match="named its model 'judge-1' and now 'judge-2'"):
        list(verdicts)
    assert fingerprint(ask().identity) != fingerprint(before)
    server.name = None
    with pytest.raises(StagealignError, match="and now None"):
        list(judge.judge([CONTEST]))


def test_a_run_that_is_left_early_asks_no_more(ask, server):
    judge = ask(workers=2)
    verdicts = judge.judge([CONTEST] * 500)
    next(verdicts)
    verdicts.close()
    time.sleep(0.2)
    asked = len(server.seen)
    time.sleep(0.1)
    assert asked == len(server.seen) < 100


def test_the_key_shows_nowhere(ask, server, monkeypatch):
    judge = ask()
    list(judge.judge([CONTEST]))
    server.name = f"model-of-{KEY}"
    other = ask()
    shown = [repr(judge), str(vars(judge)), repr(judge.server), str(vars(judge.server)), str(other.identity)]
    assert KEY not in "".join(shown)
    assert "model-of-[key]" in shown[-1]
    monkeypatch.setenv(KEYS[0], "sk planted\n")
    with pytest.raises(StagealignError, match="white space") as caught:
        Server(server.url)
    assert "planted" not in str(caught.value)
    monkeypatch.delenv(KEYS[0])
    monkeypatch.setenv(KEYS[1], f" {KEY}\n")
    ask().check()
    assert server.seen[-1][1]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.delenv(KEYS[1])
    ask().check()
    assert "Authorization" not in server.seen[-1][1]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://host/v1",
        f"http://me:{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        "http://a b/v1",
    ],
)
def test_urls_that_cannot_be_used_are_refused(url):
    with pytest.raises(StagealignError, match="URL of the server") as caught:
        Server(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h:1/v1", "HTTP://h:1/v1/", " http://h:1/v1/chat/completions\n"])
def test_urls_are_read_as_people_write_them(url):
    assert checked_url(url) == "http://h:1/v1"


def test_a_stopped_request_is_not_tried_again(ask, server):
    stop = threading.Event()
    stop.set()
    server.always = (500, {}, b"down")
    with pytest.raises(RequestFailed, match=r"HTTP 500: down$"):
        ask(attempts=9).server.chat("judge", [], {}, stop)
    assert len(server.seen) == 1
