"""The LLM judge against a real server on the loopback that misbehaves on command; the key is looked for everywhere."""

import json
import logging
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint
from stagealign.base.server import KEYS, RequestFailed, Server, checked_url
from stagealign.oracle import judge as judging
from stagealign.oracle.judge import LLMJudge, connect
from stagealign.scoring.contest import BudgetSpent, Contest

KEY = "sk-planted-7f3a91c05d"
CONTEST = Contest("Name a colour.", ("good red", "bad blue"), ("fair green", "fair grey"))
ORDER = ("bad", "fair", "good")


class Judge(ThreadingHTTPServer):
    """A server that prefers good to fair to bad and, of equals, the first; `acts` are what it does first."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts = []
        """(status, headers, body or callable of the request); taken one a request, None for a good answer."""
        self.always = None
        self.name, self.logprobs = "judge-1", False
        self.seen = []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, request):
        text = request["messages"][0]["content"]
        a, b = (re.search(rf"<response_{x}>\n(.*?)\n</response_{x}>", text, re.DOTALL)[1] for x in "ab")
        ranks = [ORDER.index(one.split()[0]) if one.split()[0] in ORDER else 0 for one in (a, b)]
        letter = "A" if ranks[0] >= ranks[1] else "B"
        choice = {"message": {"role": "assistant", "content": letter}}
        if self.logprobs and request.get("logprobs"):
            other = "AB".replace(letter, "")
            top = [
                {"token": f" {letter}", "logprob": -0.1},
                {"token": other, "logprob": -3},
                {"token": "x", "logprob": -4},
            ]
            choice |= {"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": top}]}}
        return {"model": self.name, "choices": [choice], "usage": {"total_tokens": 7}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), request))
            act = self.server.acts.pop(0) if self.server.acts else self.server.always
        status, headers, body = act or (200, {}, None)
        if callable(body):
            body = body(request)
        if body is None:
            body = self.server.answer(request)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client did not wait
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KEYS[0], KEY)
    with Judge() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """Factory of judges of that server, closed at the end."""
    made = []

    def build(workers=4, timeout=5.0, attempts=3, model="judge"):
        made.append(LLMJudge(model, Server(server.url, timeout=timeout, attempts=attempts, backoff=0.01), workers))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _secret_stays_secret(caplog, capfd, tmp_path):
    """No test of this file may leave the key in a log, at any level, or on a terminal."""
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text


def slow(_):
    time.sleep(0.6)


def test_scores_are_shares_of_comparisons_won(ask, server):
    """Good beats fair twice: 1; bad loses twice: 0; each fair wins one of two: 0.5."""
    judge = ask()
    (found,) = judge.judge([CONTEST])
    assert (found.on, found.off) == ((1.0, 0.0), (0.5, 0.5))
    assert found.won == (1.0, 1.0, 0.0, 0.0)
    assert (found.compared, found.changed, found.truncated, found.failed) == (4, 0, 0, None)
    assert judge.style == "text"
    assert len(server.seen) == 2 + 8  # a question a style, then four pairs in both orders
    assert judge.server.requests == 10
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
    server.acts = [(400, {}, {"error": "logprobs: unsupported"}), (400, {}, {"error": "max_tokens: unsupported"})]
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
        ("<think>A or B? A\n</think>\n\nB", 0.0),
        ("A good question", None),
        ("A and B", None),
        ("", None),
        (None, None),
        ([1], None),
    ],
)
def test_what_counts_as_an_answer(text, wanted):
    assert judging._preference({"choices": [{"message": {"content": text}}]}, "text") == wanted


@pytest.mark.parametrize(
    ("top", "wanted"),
    [
        ([("A", -1), ("B", -2)], 1.0),
        ([("x", 0), ("B", -9)], 0.0),
        ([("A", -2), (" A", -0.5), ("B", -1)], 1.0),
        ([("A", -1), ("B", -1)], 0.5),
        ([("x", -1)], None),
        ([("A", float("nan")), ("B", -5)], 0.0),
        ([("A", "high")], None),
        ([(3, -1)], None),
    ],
)
def test_the_likelier_letter_wins(top, wanted):
    logprobs = {"content": [{"top_logprobs": [{"token": token, "logprob": value} for token, value in top]}]}
    assert judging._preference({"choices": [{"logprobs": logprobs}]}, "logprobs") == wanted


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
    assert judge.server.requests == 2 + 16 + 2


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
    assert before == {"kind": "judge", "version": 2, "model": "judge", "served": "judge-1", "style": "text"}
    verdicts = judge.judge([CONTEST] * 5)
    assert next(verdicts).failed is None
    server.name = "judge-2"
    with pytest.raises(StagealignError, match="named its model 'judge-1' and now 'judge-2'"):
        list(verdicts)
    assert fingerprint(ask().identity) != fingerprint(before)
    server.name = None
    with pytest.raises(StagealignError, match="and now None"):
        list(judge.judge([CONTEST]))


def test_verdicts_keep_the_order_of_the_contests(ask):
    contests = [
        Contest(f"prompt {i}", (("good", "fair", "bad")[i % 3],), (("fair", "bad")[i % 2] + " x",)) for i in range(30)
    ]
    expected = [next(ask(workers=1).judge([one])) for one in contests[:6]]
    found = list(ask(workers=8).judge(contests))
    assert found[:6] == expected
    assert len(found) == 30
    assert list(ask().judge([])) == []


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
