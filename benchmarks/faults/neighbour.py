"""Misbehaving chat server on the loopback: bad, late or no answers, another model's name, wrong bills."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Row = dict[str, Any]
TIMEOUT = 2.0
"""Seconds that a client waits, instead of 60."""
PASSING = ("429", "500", "half", "garbage", "empty", "late", "never", "drip")
"""Faults that a second request may not meet."""
ODD: dict[str, Any] = {
    "no text": {"content": None},
    "a list for text": {"content": [{"type": "text", "text": "A"}]},
    "half a character": {"content": "\ud800"},
    "another type": {"content": 7},
    "a wall of text": {"content": "x" * 100_000},
}
"""Messages of a complete answer that are no verdict."""


class Neighbour(ThreadingHTTPServer):
    """Chat server; `act(number from 0, request)` names the way in which each request is answered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, act: Callable[[int, Row], str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act, self.seen = act, Counter[str]()
        """Number of requests by their last message."""
        self.number, self.bill, self.name = 0, 7, "model-1"
        self.lock = threading.Lock()
        self.over = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect, which these tests provoke."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def good(self, request: Row) -> Row:
        """Valid answer to a question of the meter's judge, to one of AlpacaEval's, or to a prompt."""
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
    """Runs a server inside the block."""
    with Neighbour(act) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


@contextmanager
def hurried() -> Iterator[None]:
    """Shortens the timeouts and pauses of clients inside the block."""
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
    """Names each fault of `PASSING` once, at every third request after the first four."""
    place, rest = divmod(number - 4, 3)
    return PASSING[place] if 0 <= place < len(PASSING) and not rest else "good"


def always_for(prompt: str, act: str) -> Callable[[int, Row], str]:
    """Function that answers one prompt always by `act`, and others well."""
    return lambda number, request: act if prompt in request["messages"][-1]["content"] else "good"


def from_then(count: int, act: str) -> Callable[[int, Row], str]:
    """Function that answers by `act` from request `count` on, and well before."""
    return lambda number, request: act if number >= count else "good"
