"""An evaluation's files, its judge's server, and a home and a key of its own."""

import json
import logging

import pytest
from factory_alpaca import KEY, Grader, rows
from factory_judge import PROXIES, running

from stagealign.base import server as serving
from stagealign.evaluate.alpaca_eval import evaluate as alpaca


@pytest.fixture
def files(tmp_path):
    """Writes OUTPUTS and a baseline, AlpacaEval's JSON; gives their names."""

    def write(outputs=None, baseline=None):
        made = []
        for name, table in (("outputs", outputs), ("baseline", baseline)):
            table = rows(quality="good" if name == "outputs" else "fair", generator=name) if table is None else table
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(table, indent=2), encoding="utf-8")
            made.append(str(path))
        return made

    return write


@pytest.fixture
def own_home(tmp_path, monkeypatch, caplog, capfd):
    """Everything goes below a folder of the test, and the planted key into none of it and on no terminal."""
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in (*serving.KEYS, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(serving.KEYS[1], KEY)
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.fixture
def server(monkeypatch):
    """A server on the loopback that prefers the better quality, with probability sigmoid(2 * difference)."""
    pytest.importorskip("httpx")
    pytest.importorskip("tenacity")
    start = serving.Server.__init__
    monkeypatch.setattr(
        serving.Server, "__init__", lambda self, url: start(self, url, timeout=5.0, attempts=2, backoff=0.01)
    )
    with running(Grader()) as one:
        yield one


@pytest.fixture
def ask(files, server):
    """Evaluates by the official judge on that server."""

    def run(outputs=None, baseline=None, heard=None, **changes):
        options = {"judge": "official", "judge_url": server.url, "spend": 10.0, "workers": 3} | changes
        return alpaca.evaluate(alpaca.EvaluationRequest(*files(outputs, baseline), **options), heard)

    return run
