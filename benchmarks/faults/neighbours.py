"""Judge and policy servers on the loopback that answer badly, late, never, under another name, or at any price."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError

Row = dict[str, Any]
PROMPTS = 20
TIMEOUT = 2.0
"""Seconds, in place of 60."""
PASSING = ("429", "500", "half", "garbage", "empty", "late", "never", "drip")
"""What a second try may mend."""
ODD: dict[str, Any] = {
    "no text": {"content": None},
    "a list for text": {"content": [{"type": "text", "text": "A"}]},
    "half a character": {"content": "\ud800"},
    "another type": {"content": 7},
    "a wall of text": {"content": "x" * 100_000},
}
"""Messages of a whole answer that nobody can use as a verdict."""


class Neighbour(ThreadingHTTPServer):
    """A chat server; `act` says for each request (its number from 0, the request) how it is answered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, act: Callable[[int, Row], str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act, self.seen = act, Counter[str]()
        """Requests by the text that they ask about."""
        self.number, self.bill, self.name = 0, 7, "model-1"
        self.lock = threading.Lock()
        self.over = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that did not wait is what is wanted here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def good(self, request: Row) -> Row:
        """A whole answer to a judge's question, AlpacaEval's, or a prompt."""
        text = request["messages"][-1]["content"]
        judging = "m" if '"output": """' in text else "A" if "<response_a>" in text else "a completion of the policy"
        choice: Row = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": judging}}
        if judging == "m" and request.get("logprobs"):
            top = [{"token": t, "logprob": p, "bytes": None} for t, p in (("m", -0.1), ("M", -2.5))]
            choice["logprobs"] = {"content": [{"token": "m", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
        usage = {"prompt_tokens": self.bill, "completion_tokens": 1, "total_tokens": self.bill + 1}
        return {"model": self.name, "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    server: Neighbour

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number, self.server.number = self.server.number, self.server.number + 1
            self.server.seen[request["messages"][-1]["content"]] += 1
        try:
            self.answer(self.server.act(number, request), request)
        except OSError:  # the client did not wait
            self.close_connection = True

    def answer(self, act: str, request: Row) -> None:
        body = self.server.good(request)
        if act in ODD:
            body["choices"][0]["message"] |= ODD[act]
            body["choices"][0].pop("logprobs", None)
        elif act == "strange numbers":
            body["usage"] = {"prompt_tokens": 10**400, "completion_tokens": "many", "total_tokens": -1}
            body["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{"token": "m", "logprob": 1e300}]}]}
        elif act == "other":
            body["model"] = "model-2"
        elif act in ("late", "never"):
            self.server.over.wait(TIMEOUT * (1.5 if act == "late" else 10))
        data = {"garbage": b"\xff<html>\0", "empty": b""}.get(act, json.dumps(body).encode())
        if act == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            started = time.monotonic()
            while time.monotonic() - started < TIMEOUT * 10 and not self.server.over.wait(TIMEOUT / 5):
                self.wfile.write(b"x")
            return
        status = int(act) if act.isdigit() else 200
        self.send_response(status)
        if act == "429":
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if act == "half" else data)
        self.close_connection = act == "half"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def neighbour(act: Callable[[int, Row], str]) -> Iterator[Neighbour]:
    """A server under way."""
    with Neighbour(act) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield one
        finally:
            one.over.set()
            one.shutdown()
            thread.join()


@contextmanager
def hurried() -> Iterator[None]:
    """Servers are waited for a short time, and tried again at once."""
    from stagealign.base import server

    start = server.Server.__init__
    given = os.environ.get(server.KEYS[0])
    os.environ[server.KEYS[0]] = "sk-none"

    def quick(self: Any, url: str, *_: Any, **__: Any) -> None:
        start(self, url, timeout=TIMEOUT, attempts=5, backoff=0.01)

    server.Server.__init__ = quick  # type: ignore[method-assign]
    try:
        yield
    finally:
        server.Server.__init__ = start  # type: ignore[method-assign]
        if given is None:
            del os.environ[server.KEYS[0]]
        else:
            os.environ[server.KEYS[0]] = given


def good(number: int, request: Row) -> str:
    return "good"


def at_first(number: int, request: Row) -> str:
    """Each kind of passing fault once, at every third request after the first few."""
    place, rest = divmod(number - 4, 3)
    return PASSING[place] if 0 <= place < len(PASSING) and not rest else "good"


def always_for(prompt: str, act: str) -> Callable[[int, Row], str]:
    """One prompt that is answered so, whenever it is asked."""
    return lambda number, request: act if prompt in request["messages"][-1]["content"] else "good"


def from_then(count: int, act: str) -> Callable[[int, Row], str]:
    """A server that changes for good after so many requests."""
    return lambda number, request: act if number >= count else "good"


class Client:
    """Asks one of the three kinds of question about `PROMPTS` prompts; what was answered is kept in `home`."""

    name = ""

    def __init__(self, home: Path):
        self.home = home
        home.mkdir(parents=True, exist_ok=True)

    def ask(self, server: Neighbour, **options: Any) -> tuple[int, int]:
        """(answered, failed) prompts. Raises StagealignError."""
        raise NotImplementedError

    def prompt(self, number: int) -> str:
        return f"Task {number:02}: explain it."


class Judge(Client):
    name = "judge of the boundary meter"

    def ask(self, server: Neighbour, **options: Any) -> tuple[int, int]:
        from stagealign.base.server import Server
        from stagealign.boundary.meter import Meter, kept_at, measure
        from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
        from stagealign.oracle.judge import TIMEOUT, connect

        judge = connect("judge", Server(server.url, timeout=TIMEOUT), workers=2)
        items = [MeterPrompt(f"{n:02}", self.prompt(n), ("static",)) for n in range(PROMPTS)]
        kept = kept_at(self.home, {"policy": "none"}, judge.identity)
        meter = Meter(lambda asked: [SampledPrompt(("sampled",), 1, 0) for _ in asked], judge, *kept)
        try:
            found = measure(items, meter, {})
        finally:
            judge.close()
        return found.prompts_used, found.failures


class Policy(Client):
    name = "served policy"

    def ask(self, server: Neighbour, **options: Any) -> tuple[int, int]:
        from stagealign.boundary.meter import Meter, kept_at, measure
        from stagealign.boundary.open_policy import open_policy
        from stagealign.boundary.request import BoundaryRequest
        from stagealign.boundary.sampling import MeterPrompt
        from stagealign.scoring.contest import Judged

        class Fair:
            """An oracle that finds all alike."""

            @property
            def identity(self) -> Row:
                return {"kind": "fair"}

            def judge(self, contests: Any) -> Any:
                return (Judged((1.0,) * len(one.on), (1.0,) * len(one.off)) for one in contests)

        policy = open_policy(BoundaryRequest("policy", "none", policy_url=server.url))
        items = [MeterPrompt(f"{n:02}", self.prompt(n), ("static",)) for n in range(PROMPTS)]
        found = measure(
            items, Meter(policy.sampler, Fair(), *kept_at(self.home, policy.identity, {"kind": "fair"})), {}
        )
        return found.prompts_used, found.failures


class Alpaca(Client):
    name = "judge of AlpacaEval"

    def ask(self, server: Neighbour, **options: Any) -> tuple[int, int]:
        from stagealign.evaluate.alpaca_eval import evaluate as alpaca

        os.environ["STAGEALIGN_HOME"] = str(self.home)
        files = []
        for who in ("model", "baseline"):
            path = self.home / f"{who}.json"
            rows = [{"instruction": self.prompt(n), "output": f"{who} {n}", "generator": who} for n in range(PROMPTS)]
            path.write_text(json.dumps(rows), encoding="utf-8")
            files.append(str(path))
        found = alpaca.evaluate(alpaca.Request(*files, "judge:judge", server.url, **({"workers": 2} | options)))
        self.last = found
        return len(found.preferences), len(found.failed)


def scenarios(client: Callable[[str], Client]) -> Iterator[tuple[str, str, list[str]]]:
    """What was tried, what must come of it, and what did not, for one kind of client."""
    name = client("names").name
    with neighbour(at_first) as server:
        wrong = _must(client("passing").ask, server, answered=(PROMPTS, 0))
        yield f"{name}: {', '.join(PASSING)}, once each", "tried again, all answered", wrong
    for act in ("500", *ODD, "strange numbers"):
        if name == Policy.name and act in ("no text", "half a character", "a wall of text", "strange numbers"):
            wanted = (PROMPTS, 0)  # an empty, a mended, a long completion are completions
        elif name == Judge.name and act == "strange numbers":
            wanted = (PROMPTS, 0)  # its letter is sound
        else:
            wanted = (PROMPTS - 1, 1)
        one = client(act.replace(" ", "-"))
        with neighbour(always_for(one.prompt(3), act)) as server:
            wrong = _must(one.ask, server, answered=wanted)
            server.act = good
            if not wrong:
                wrong = _must(one.ask, server, answered=(PROMPTS, 0))
            asked = max((count for text, count in server.seen.items() if one.prompt(5) in text), default=0)
            if asked > 2:  # a policy is asked for two completions
                wrong.append("what was answered was asked again")
        what = "used, as it is an answer" if wanted[1] == 0 else "that prompt failed with its reason, then mended"
        yield f"{name}: {act} for one prompt, always", what, wrong
    one = client("gone")
    with neighbour(from_then(6, "500")) as server:
        wrong = _must(one.ask, server, refused="in a row|again|HTTP 500")
        server.act, server.seen = good, Counter()
        if not wrong:
            wrong = _must(one.ask, server, answered=(PROMPTS, 0))
        yield f"{name}: gone for good after 6 requests", "stopped soon, kept, went on", wrong
    one = client("name")
    with neighbour(from_then(9, "other")) as server:
        wrong = _must(one.ask, server, refused="model-1.*model-2")
        yield f"{name}: another model's name within a call", "refused, both named", wrong
    one = client("names")
    with neighbour(good) as server:
        wrong = _must(one.ask, server, answered=(PROMPTS, 0))
        server.name, server.seen = "model-2", Counter()
        asked_anew = name != Alpaca.name
        if asked_anew:
            wrong += _must(one.ask, server, answered=(PROMPTS, 0))
            if sum(server.seen.values()) < PROMPTS:
                wrong.append("verdicts of the other model were used again")
        else:
            wrong += _must(one.ask, server, refused="model-1, model-2")
        what = "nothing of the other used" if asked_anew else "refused, both named"
        yield f"{name}: another model's name between calls", what, wrong


def _must(
    ask: Callable[..., tuple[int, int]],
    server: Neighbour,
    answered: tuple[int, int] | None = None,
    refused: str = "",
    **options: Any,
) -> list[str]:
    """What is not as it must be: so many prompts (answered, failed), or an error of one line with these words."""
    import re

    started = time.monotonic()
    try:
        found = ask(server, **options)
    except StagealignError as error:
        text = str(error)
        if not refused or not re.search(refused, text):
            return [f"refused: {text[:300]}"]
        return [f"a message of several lines: {text[:200]!r}"] if "\n" in text else []
    except Exception as error:
        return [f"{type(error).__name__}: {str(error)[:300]}"]
    took = time.monotonic() - started
    if found != answered:
        return [f"(answered, failed) {found}, wanted {answered or 'an error'}, in {took:.0f} s"]
    return []


def spending(home: Path) -> tuple[str, str, list[str]]:
    """A judge that bills a million tokens for a small question, with a limit of one dollar."""
    one = Alpaca(home)
    with neighbour(good) as server:
        server.bill = 10**6
        wrong = _must(one.ask, server, answered=(0, PROMPTS), spend=1.0, price="10,30", workers=1)
        asked = server.number
    if not wrong and not one.last.stopped:
        wrong.append("it did not say that it stopped")
    return "judge of AlpacaEval: bills ten times the limit in one answer", f"stopped after {asked} request", wrong


def measure(folder: Path) -> Iterator[Row]:
    """One row a client and fault."""
    home = os.environ.get("STAGEALIGN_HOME")
    with hurried():
        try:
            for kind in (Judge, Policy, Alpaca):
                for tried, found, wrong in scenarios(lambda name, kind=kind: kind(folder / kind.__name__ / name)):
                    yield _row(tried, found, wrong)
            yield _row(*spending(folder / "spending"))
        finally:
            if home is not None:
                os.environ["STAGEALIGN_HOME"] = home


def _row(tried: str, found: str, wrong: list[str]) -> Row:
    found = found if not wrong else "not as it must be"
    return {"tried": tried, "times": 1, "survived": int(not wrong), "wrong": wrong[:3], "found": found}
