"""Servers of a policy on the loopback: one that is made up, and a real `transformers serve` with a proxy before it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stagealign.base.identity import plain
from stagealign.base.kind import Kind
from stagealign.data.records import Prompt, write_rows
from stagealign.grid.spec import Decoding
from stagealign.policy import lm, served_samples
from stagealign.store.artifact import Artifact, Context, Work

DECODING = Decoding(max_new_tokens=6)


class Fake(ThreadingHTTPServer):
    """A chat server that refuses settings it does not know and writes the seed that it was given."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, knows=("top_k",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.knows = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", *knows}
        self.name, self.weights, self.owner = "policy-1", "A", "library"
        self.seen, self.down_after, self.down_from, self.lock = [], None, None, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, request):
        """(status, body)."""
        unknown = set(request) - self.knows
        text = request["messages"][-1]["content"]
        if unknown:
            return 422, {"detail": f"Unexpected fields in the request: {unknown}"}
        if self.down_after is not None and len(self.seen) > self.down_after:
            return 500, {"error": "down"}
        if self.down_from is not None and text.isdigit() and int(text) >= self.down_from:
            return 500, {"error": "down"}
        if "too long" in text:
            return 400, {"error": "longer than the context"}
        said = f" {self.weights} says {request.get('seed')} \n"
        choice = {
            "message": {"role": "assistant", "content": said},
            "finish_reason": "length" if "long" in text else "stop",
        }
        return 200, {"model": self.name, "choices": [choice], "usage": {"completion_tokens": 3, "total_tokens": 9}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((dict(self.headers), request))
            status, body = self.server.answer(request)
        self.send(status, body)

    def do_GET(self):
        models = {"data": [{"id": self.server.name, "owned_by": self.server.owner}]}
        self.send(*((200, models) if self.path.endswith("/models") else (404, {})))

    def send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def cell_work(home, url, lm_, count=12, texts=("prompt",), name="out"):
    """The work of sampling two completions of each prompt from a policy that a run has built."""
    policy, prompts, out = home / "policy", home / "prompts", home / name
    for folder in (policy, prompts, out):
        folder.mkdir(parents=True, exist_ok=True)
    if not (policy / "record.json").exists():
        lm.save(lm_, policy)
        made = Artifact("policy", Kind("x:y", price="free"))
        record = {"fingerprint": made.fingerprint, "identity": made.identity, "facts": {}}
        (policy / "record.json").write_text(json.dumps(record))
        rows = [Prompt(f"{text} {i}", "train") for i in range(count) for text in texts]
        write_rows(prompts / "prompts.jsonl", [*rows, rows[0], Prompt("not asked", "test")])
    params = {
        "engine": plain(served_samples.engine(url, DECODING, home)),
        "decoding": plain(DECODING),
        "count": 2,
        "splits": ["train"],
        "seed": 3,
        "dtype": "float32",
    }
    return Work(params, {"policy": policy, "prompts": prompts}, out, home, Context(policy_url=url))


class Loads(Fake):
    """A server that loads the model that a request names; as Fake else."""

    def answer(self, request):
        if not set(request) - self.knows and not Path(request["model"]).is_dir():
            return 500, {"error": f"{request['model']} does not appear to have a file named config.json"}
        self.name = f"{request['model']}@main"
        return super().answer(request)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Real:
    """`transformers serve` in a process of its own; it loads a model by its folder when it is first asked for."""

    def __init__(self, log):
        self.port, self.log, self.process = free_port(), log, None
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu"]
        settings = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=log, stderr=log, env=settings
            )
        return self

    def wait(self, seconds=60):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with opener.open(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return self
            except OSError:
                assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
                time.sleep(0.2)
        raise AssertionError(f"the server did not start: {self.log.read_text(errors='replace')[-3000:]}")

    def kill(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Counts(ThreadingHTTPServer):
    """A proxy before a real server that counts what was answered, by model, prompt and seed."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Passes)
        self.behind, self.answered, self.lock = behind, Counter(), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Passes(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        asked = urllib.request.Request(
            f"{self.server.behind}/chat/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with opener.open(asked, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        except (OSError, http.client.HTTPException):
            status, data = 503, b"{}"  # it is gone: what was asked is asked again
        request = json.loads(body)
        if status == 200:
            with self.server.lock:
                self.server.answered[request["model"], request["messages"][-1]["content"], request.get("seed")] += 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
