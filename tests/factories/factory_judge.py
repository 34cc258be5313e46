"""A judge on the loopback that misbehaves on command, and a way to run the server of a test."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stagealign.scoring.served_weights import PROBE

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
KEY = "sk-planted-7f3a91c05d"
ORDER = ("bad", "fair", "good")


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[Any]:
    """The server, which serves from a thread of its own until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
        self.models, self.says = [], "I am the first judge"
        """Entries of its list of models, and its answer to the question that tells models apart."""
        self.seen = []
        """Requests besides that question."""
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
    def do_GET(self):
        data = json.dumps({"object": "list", "data": getattr(self.server, "models", [])}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["messages"] and request["messages"][-1]["content"] == PROBE:
            choice = {"message": {"role": "assistant", "content": self.server.says}}
            self._send(200, {}, json.dumps({"model": self.server.name, "choices": [choice]}).encode())
            return
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), request))
            act = self.server.acts.pop(0) if self.server.acts else self.server.always
        status, headers, body = act or (200, {}, None)
        if callable(body):
            body = body(request)
        if body is None:
            body = self.server.answer(request)
        self._send(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())

    def _send(self, status, headers, data):
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
