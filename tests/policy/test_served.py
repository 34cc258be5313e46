"""A served policy: in the ways that servers differ, and a real `transformers serve` that dies and comes back."""

import http.client
import importlib.util
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
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from stagealign.base.errors import StagealignError
from stagealign.base.identity import plain, stream
from stagealign.base.kind import Kind
from stagealign.base.server import KEYS, POLICY_KEYS, Server
from stagealign.boundary.measure import measure_boundary
from stagealign.cli.variants import Variant
from stagealign.data.records import Candidate, Prompt, prompt_hash, read_rows, write_rows
from stagealign.grid import registry, variants
from stagealign.grid.spec import Decoding, Engine
from stagealign.plan import machine
from stagealign.plan import plan as planning
from stagealign.policy import lm, served_samples
from stagealign.policy import served as serving
from stagealign.policy.served import ServedPolicy, penalties
from stagealign.store.artifact import Artifact, Context, Work
from stagealign.store.home import default_home

DECODING = Decoding(max_new_tokens=6)


class Fake(ThreadingHTTPServer):
    """A chat server that refuses settings it does not know and writes the seed that it was given."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, knows=("top_k",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.knows = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", *knows}
        self.name, self.weights = "policy-1", "A"
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
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake():
    """Factory of running servers."""
    made = []

    def start(*knows):
        server = Fake(knows)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        made.append((server, thread))
        return server

    yield start
    for server, thread in made:
        server.shutdown()
        thread.join()
        server.server_close()


def policy(server, **changes):
    return ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01, **changes), DECODING, seed=3)


def asks(*prompts):
    return [(f"{i:04x}", [{"role": "user", "content": text}]) for i, text in enumerate(prompts)]


@pytest.mark.parametrize(
    ("knows", "style"), [(("top_k",), "top_k"), (("generation_config",), "generation_config"), ((), "plain")]
)
def test_the_best_way_that_a_server_takes_is_used(fake, knows, style):
    server = fake(*knows)
    served = policy(server)
    assert (served.style, served.served) == (style, "policy-1")
    one, two = served.write(asks("a", "b, long"), 2)
    assert len({*one.completions, *two.completions}) == 4  # a seed each
    assert all(text == text.strip() for text in one.completions)
    assert (one.tokens, one.truncated, two.truncated) == (6, 0, 2)
    request = server.seen[-1][1]
    assert (request["max_tokens"], request["model"]) == (6, "p")
    if style == "generation_config":
        given = json.loads(request["generation_config"])
        assert given == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_new_tokens": 6}
    else:
        assert (request["temperature"], request["top_p"], request.get("top_k")) == (0.7, 0.9, 50 if knows else None)


def test_penalties_are_asked_for_where_a_server_has_them_and_refused_elsewhere(fake):
    decoding = replace(DECODING, presence_penalty=0.1, frequency_penalty=0.2)

    def ask(*knows):
        server = fake(*knows)
        return server, ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01), decoding, seed=3)

    server, served = ask("top_k", "presence_penalty", "frequency_penalty")
    served.write(asks("a"), 1)
    request = server.seen[-1][1]
    assert (request["presence_penalty"], request["frequency_penalty"]) == (0.1, 0.2)
    with pytest.raises(StagealignError, match="no presence or frequency penalty"):
        ask("generation_config")
    assert "presence_penalty" not in penalties(DECODING)


def test_other_weights_under_the_same_name_are_another_policy(fake):
    server = fake()
    before = policy(server).identity
    assert policy(server).identity == before
    server.weights = "B"
    assert policy(server).identity != before


def test_a_prompt_that_the_server_refuses_is_a_failure_and_the_others_count(fake):
    one, two, three = policy(fake()).write(asks("a", "too long", "b"), 2)
    assert (one.failed, three.failed) == (None, None)
    assert "HTTP 400: " in two.failed
    assert "longer than the context" in two.failed
    assert two.completions == ()


def test_a_server_that_fails_on_and_on_stops_the_run_and_leaves_what_it_gave(fake, monkeypatch):
    monkeypatch.setattr(serving, "GIVE_UP", 3)
    server = fake("top_k")
    served = policy(server)
    server.down_from = 15
    given = []
    with pytest.raises(StagealignError, match=r"3 prompts in a row failed, .*HTTP 500: .*down.*run the same command"):
        given.extend(one for one in served.write(asks(*map(str, range(40))), 2))
    assert [one.failed is None for one in given] == [True] * 15 + [False] * 2


def test_a_server_that_is_gone_stops_the_run(fake):
    server = fake("top_k")
    served = policy(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(StagealignError, match=r"cannot connect|connection broke"):
        list(served.write(asks("a"), 2))


def test_another_name_in_the_middle_is_refused(fake):
    server = fake("top_k")
    served = policy(server)
    server.name = "policy-2"
    with pytest.raises(StagealignError, match="named its model 'policy-1' and now 'policy-2'"):
        list(served.write(asks("a"), 2))


def test_a_policy_does_not_get_the_key_of_the_judge(fake, monkeypatch):
    server = fake("top_k")
    for name in KEYS:
        monkeypatch.setenv(name, "sk-of-the-judge")
    monkeypatch.delenv(POLICY_KEYS[0], raising=False)
    policy(server)
    assert all("Authorization" not in headers for headers, _ in server.seen)
    monkeypatch.setenv(POLICY_KEYS[0], "sk-own")
    policy(server)
    assert server.seen[-1][0]["Authorization"] == "Bearer sk-own"


def test_a_policy_that_is_not_there_is_an_error_before_any_work():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StagealignError, match=r"policy 'p' at .*cannot connect.*see that the server runs"):
        ServedPolicy("p", Server(url, attempts=2, backoff=0.01), DECODING, seed=0)


def test_the_meter_measures_a_served_policy_and_goes_on_where_it_was(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    server = fake("top_k")
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"prompt {i}", "chosen": f"A says good {i}", "rejected": f"bad {i}"} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = tmp_path / "pairs.jsonl"
    with open(scores, "w") as file:  # every pair that can come: the answer is the seed's, so it is known beforehand
        from stagealign.base.identity import stream
        from stagealign.data.records import prompt_hash

        for row in rows:
            key = prompt_hash(row["prompt"])
            for j in range(2):
                said = f"A says {stream(0, 'sample', key, j) % 2**31}"
                for other, share in ((row["chosen"], 0.0), (row["rejected"], 1.0)):
                    file.write(json.dumps({"prompt": row["prompt"], "a": said, "b": other, "preference": share}) + "\n")
    options = {"policy_url": server.url, "oracle": f"recorded:{scores}", "decoding": DECODING}
    found = measure_boundary("p", str(data), **options, prompts=20)
    assert (found.prompts_used, found.boundary_score, found.cost["sampled_tokens"]) == (20, 0.5, 20 * 6)
    assert found.data["policy decodes with"] == "as asked"
    asked = len(server.seen)
    more = measure_boundary("p", str(data), **options)
    assert more.prompts_used == 30
    assert len(server.seen) - asked == 2 + 2 * 10  # two first questions, then only what is new
    with pytest.raises(StagealignError, match="--template none"):
        measure_boundary("p", str(data), **options, template="none")


# --- cells


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


@pytest.fixture
def loads(monkeypatch):
    monkeypatch.setitem(globals(), "Fake", Loads)


def asked_of(server, text="prompt"):
    """(prompt, seed) of every request that is for a sample."""
    found = [request for _, request in server.seen if text in request["messages"][-1]["content"]]
    return [(request["messages"][-1]["content"], request["seed"]) for request in found]


@pytest.mark.parametrize(("knows", "style"), [(("top_k",), "top_k"), (("generation_config",), "generation_config")])
def test_candidates_of_a_served_policy(loads, fake, tmp_path, tiny, knows, style):
    """By hand: what the server says is the seed's, the server counts 3 tokens, and "long" texts are cut."""
    server = fake(*knows)
    work = cell_work(tmp_path, server.url, tiny(chat=True), 3, ("prompt", "long prompt"))
    assert work.params["engine"] == {"key": "served", "version": None, "settings": {"style": style}}
    facts = served_samples.build(work)
    found = read_rows(work.out / "candidates.jsonl", Candidate)
    prompts = [f"{text} {i}" for i in range(3) for text in ("prompt", "long prompt")]
    assert [(c.prompt, c.index, c.source) for c in found] == [(p, j, "on") for p in prompts for j in (0, 1)]
    tokenizer = tiny(chat=True).tokenizer
    for c in found:
        said = f" A says {stream(3, 'sample', prompt_hash(c.prompt), c.index) % 2**31} \n"
        assert c.completion == said.strip()
        assert tokenizer.decode(list(c.token_ids)) == said
        assert (c.truncated, c.tokens) == ("long" in c.prompt, len(c.token_ids) + ("long" not in c.prompt))
        assert c.logp is None
    assert facts["recounted"] == facts["candidates"] == 12, "bytes, not the server's three tokens"
    assert (facts["truncated"], facts["kept"]) == (6, 0)
    name = server.seen[-1][1]["model"]
    assert Path(name).parent == tmp_path / "served"
    assert Path(name).resolve() == tmp_path / "policy"
    assert facts["served"] == f"{name}@main"
    if style == "generation_config":
        assert json.loads(server.seen[-1][1]["generation_config"])["eos_token_id"] == [0]


def test_the_name_of_a_policy_holds_what_it_is(tmp_path):
    """A policy that is built anew at the same path is asked for by another name, whatever the server remembers."""
    policy = tmp_path / "a" / "policy"
    policy.mkdir(parents=True)
    names = []
    for version in (1, 2, 1):
        made = Artifact("a/policy", Kind("x:y", version=version, price="free"))
        record = {"fingerprint": made.fingerprint, "identity": made.identity, "facts": {}}
        (policy / "record.json").write_text(json.dumps(record))
        names.append(served_samples.named(policy, tmp_path))
        assert names[-1].name == made.fingerprint
        assert (names[-1] / "record.json").samefile(policy / "record.json")
    assert names[0] == names[2] != names[1]


def test_a_server_that_answers_for_any_name_is_refused_before_work(fake, tmp_path):
    with pytest.raises(StagealignError, match=r"it answered for .*no-such-policy, a folder that is not there"):
        served_samples.engine(fake("top_k").url, DECODING, tmp_path)


def test_a_server_that_names_another_model_is_refused(loads, fake, tmp_path, tiny, monkeypatch):
    server = fake("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True))
    monkeypatch.setattr(ServedPolicy, "_named", lambda *_: "another")
    with pytest.raises(StagealignError, match="the server named its model 'another'"):
        served_samples.build(work)


def test_a_policy_without_a_template_is_refused(loads, fake, tmp_path, tiny):
    server = fake("top_k")
    with pytest.raises(StagealignError, match="no chat template, and a server puts one around"):
        served_samples.build(cell_work(tmp_path, server.url, tiny()))
    assert asked_of(server) == []


def test_failed_prompts_are_asked_again_and_no_other(loads, fake, tmp_path, tiny):
    server = fake("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True), 4, ("prompt", "too long prompt"))
    with pytest.raises(StagealignError, match=r"4 of 8 prompts failed, the first .*HTTP 400.*longer than the context"):
        served_samples.build(work)
    assert not (work.out / "candidates.jsonl").exists()
    first = asked_of(server)
    server.answer = lambda request: Fake.answer(server, request | {"messages": [{"content": "now it is fine"}]})
    facts = served_samples.build(work)
    again = asked_of(server)[len(first) :]
    assert facts["kept"] == 8
    assert sorted({text for text, _ in again}) == [f"too long prompt {i}" for i in range(4)]
    assert len(again) == 8


def test_a_build_that_was_killed_goes_on(loads, fake, tmp_path, tiny, monkeypatch):
    """Half a line and a damaged one are asked again; every other answer is used as it is."""
    monkeypatch.setattr(serving, "GIVE_UP", 2)
    server = fake("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True), 30)
    server.down_after = len(server.seen) + 12
    monkeypatch.setattr(serving, "Server", lambda *given, **more: Server(*given, **more, attempts=1, backoff=0.01))
    with pytest.raises(StagealignError, match="2 prompts in a row failed"):
        served_samples.build(work)
    for thread in [one for one in threading.enumerate() if one.name.startswith("policy")]:
        thread.join()  # what was under way still comes, and is kept
    answers = work.out / "scratch" / "answers.jsonl"
    lines = answers.read_text().splitlines()
    assert len(lines) >= 8
    lines[1] = lines[1].replace("says", "said")
    answers.write_text("\n".join(lines) + "\n" + lines[0][:20])
    server.down_after = None
    before = len(asked_of(server))
    assert served_samples.build(work)["kept"] == len(lines) - 1
    assert len(asked_of(server)) - before == 60 - (len(lines) - 1)
    found = read_rows(work.out / "candidates.jsonl", Candidate)
    whole = cell_work(tmp_path, server.url, None, name="whole")
    served_samples.build(whole)
    assert found == read_rows(whole.out / "candidates.jsonl", Candidate)


def test_cells_of_a_server_are_their_own_and_its_place_is_no_identity(tmp_path):
    cell = registry.cell("zephyr-dpo-1on")
    one, two = (variants.sampled_by([cell], Engine("served", None, {"style": "top_k"}))[0] for _ in range(2))
    assert one.id == "zephyr-dpo_served-1on"
    assert plain(one) == plain(two) != plain(cell)
    artifacts = planning.plan_run(one, 0).artifacts.values()
    assert "url" not in json.dumps([artifact.identity for artifact in artifacts]).lower()
    assert machine.absent(artifacts) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("tgi", None), "--sampler 'tgi': unknown"),
        (("vllm", "http://127.0.0.1:9/v1"), "two samplers; name one"),
        (("transformers", "http://127.0.0.1:9/v1"), "cannot connect.*see that the server runs"),
        (("transformers", "127.0.0.1:9"), "not one; for example"),
    ],
)
def test_a_wrong_sampler_is_named_before_work(given, words):
    with pytest.raises(StagealignError, match=words):
        Variant(None, *given).cells([registry.cell("zephyr-dpo-1on")])


# --- a real server


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


def always_says(lm, letter):
    """`lm` with weights that make any conversation's answer this letter and no more: a table of next tokens."""
    import torch

    model, tokenizer = lm.model, lm.tokenizer
    (say,) = tokenizer(letter, add_special_tokens=False).input_ids
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        # The state after a token is its embedding: all tokens have one, `letter` another.
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.get_input_embeddings().weight[say] = torch.eye(model.config.hidden_size)[1]
        model.get_output_embeddings().weight[say, 0] = 1.0
        model.get_output_embeddings().weight[model.config.eos_token_id, 1] = 1.0
    return lm


@pytest.fixture
def real(tmp_path):
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}; `pip install 'transformers[serving]'`")
    server = Real(tmp_path / "server.log").start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_real_server_that_dies_in_the_middle_and_comes_back(real, tmp_path, tiny):
    """Policy and judge behind `transformers serve`: killed and started again, every prompt is answered exactly once."""
    folders = {"policy": tiny(chat=True), "judge": always_says(tiny(chat=True, seed=1), "B")}
    for name, model in folders.items():
        lm.save(model, tmp_path / name)
    count, home = 24, tmp_path / "home"
    rows = [{"prompt": f"prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real.wait()
    command = [
        *(sys.executable, "-c", "from stagealign.cli.app import main; main()", "boundary", "--json", "-"),
        *("--policy", str(tmp_path / "policy"), "--policy-url", real.url, "--data", str(data)),
        *("--oracle", f"judge:{tmp_path / 'judge'}", "--judge-url", real.url, "--max-new-tokens", "24"),
    ]
    settings = os.environ | {"STAGEALIGN_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    try:
        wait_for_lines(home, "candidates.jsonl", 4, running)
        real.kill()
        before = len(keys(home, "candidates.jsonl"))
        assert 4 <= before < count, "the server was killed too late to be in the middle"
        real.start()
        out, err = running.communicate(timeout=100)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err[-3000:]
    found = json.loads(out)
    assert (found["prompts_used"], found["failures"]) == (count, 0)
    for name in ("candidates.jsonl", "verdicts-*.jsonl"):
        kept = keys(home, name)
        assert len(kept) == len(set(kept)) == count
    # A judge that always says B prefers what comes second: with both orders every pair ties.
    assert found["caveats"]["changed_with_order"] == 1.0
    assert (found["boundary_score"], found["votes"]["ties"]) == (0.5, 4 * count)
    assert found["caveats"]["repeated_candidates"] < 0.05, (
        "the two completions of a prompt are samples, not one greedy text"
    )
    assert found["cost"]["sampled_tokens"] > 0
    assert found["cost"]["oracle_tokens"] > 0
    assert found["data"]["policy decodes with"] == "as asked"


def keys(home, name):
    """Prompt hashes that a kept file holds, a line that is being written left out."""
    lines = [line for path in home.glob(f"meter/*/{name}") for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]


def wait_for_lines(home, name, count, running):
    deadline = time.monotonic() + 60
    while len(keys(home, name)) < count:
        assert running.poll() is None, running.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "nothing was sampled"
        time.sleep(0.02)


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


def sampled_through_a_death(real, works, monkeypatch, seconds=60):
    """What building each work by a real server gives, which is killed in the middle of the first and started again.

    Facts by name, after every completion of every policy was answered exactly once.
    """
    monkeypatch.setattr(serving, "WORKERS", 2)
    done, died = {}, False

    def run(name, work):
        """Builds, and again where a busy machine's server comes back too late, as its user would."""
        for _ in range(5):
            try:
                done[name] = served_samples.build(work)
                return
            except StagealignError as error:
                print(error)

    for name, work in works.items():
        building = threading.Thread(target=run, args=(name, work))
        building.start()
        answers = work.out / "scratch" / "answers.jsonl"
        deadline = time.monotonic() + seconds
        while not (answers.exists() and len(answers.read_bytes().splitlines()) >= 4):
            assert building.is_alive(), "it ended before anything was kept"
            assert time.monotonic() < deadline, "nothing was sampled"
            time.sleep(0.02)
        if not died:
            real.kill()
            died = True
            asked = len(list(read_rows(work.inputs["prompts"] / "prompts.jsonl", Prompt)))
            assert len(answers.read_bytes().splitlines()) < asked, "the server was killed too late to be in the middle"
            real.start().wait(240)
        building.join(4 * seconds)
        assert not building.is_alive()
    return done


@pytest.fixture
def proxy(real):
    counting = Counts(real.url)
    threading.Thread(target=counting.serve_forever, args=(0.01,), daemon=True).start()
    yield counting
    counting.shutdown()
    counting.server_close()


@pytest.mark.slow
def test_a_cells_policies_from_a_real_server_that_dies_in_the_middle(real, proxy, tmp_path, tiny, monkeypatch):
    """Two policies by their folders, as one grid has them; every completion is answered exactly once."""
    real.wait(240)
    works = {}
    for seed in (0, 1):
        policy = tiny(chat=True, seed=seed)
        policy.model.generation_config.eos_token_id = list(range(0, 264, 12))
        works[seed] = cell_work(tmp_path / str(seed), proxy.url, policy, count=16)
    done = sampled_through_a_death(real, works, monkeypatch)
    samples = {key: count for key, count in proxy.answered.items() if key[1].startswith("prompt")}
    assert len(samples) == 2 * 16 * 2
    assert set(samples.values()) == {1}
    rows = {seed: read_rows(work.out / "candidates.jsonl", Candidate) for seed, work in works.items()}
    for seed in works:
        assert (done[seed]["candidates"], done[seed]["recounted"]) == (32, done[seed]["recounted"])
        assert {c.truncated for c in rows[seed]} == {True, False}, "the policy's own end tokens are heeded"
        assert len({c.completion for c in rows[seed]}) > 16, "two samples a prompt, not one greedy text"
    assert [c.completion for c in rows[0]] != [c.completion for c in rows[1]]


@pytest.mark.slow
def test_smollm2_from_a_real_server_that_dies_in_the_middle(real, proxy, tmp_path, monkeypatch):
    """The lab's own model, where its store has it: text that the sampler here could have written, each once."""
    folder = default_home() / "lab" / "smollm2"
    if not (folder / "record.json").exists():
        pytest.skip(f"{folder}: not there; `make demo` builds it")
    real.wait(240)
    work = cell_work(tmp_path, proxy.url, lm.load(folder), count=8, texts=("Describe film number",))
    done = sampled_through_a_death(real, {"smollm2": work}, monkeypatch, 240)
    samples = {key: count for key, count in proxy.answered.items() if key[1].startswith("Describe")}
    assert (len(samples), set(samples.values())) == (16, {1})
    assert done["smollm2"]["candidates"] == 16
    rows = list(read_rows(work.out / "candidates.jsonl", Candidate))
    assert sum(one.completion.isascii() and " " in one.completion for one in rows) > 12, "words, not noise"
