"""A judge on the loopback, and the planted key, which no test may leave anywhere."""

import logging

import pytest
from factory_judge import KEY, PROXIES, Judge, running

from stagealign.base.server import KEYS, Server


@pytest.fixture
def server(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KEYS[0], KEY)
    with running(Judge()) as judge:
        yield judge


@pytest.fixture
def ask(server):
    """Factory of judges of that server, closed at the end."""
    from stagealign.oracle.judge import LLMJudge

    made = []

    def build(workers=4, timeout=5.0, attempts=3, model="judge"):
        made.append(LLMJudge(model, Server(server.url, timeout=timeout, attempts=attempts, backoff=0.01), workers))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def secret_stays_secret(caplog, capfd):
    """No test may leave the key in a log, at any level, or on a terminal."""
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text
