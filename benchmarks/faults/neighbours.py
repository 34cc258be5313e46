"""Clients of judge and policy servers against a misbehaving server: sound answers must be kept."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.neighbour import (
    ODD,
    PASSING,
    Neighbour,
    Row,
    always_for,
    at_first,
    from_then,
    good,
    hurried,
    neighbour,
)
from stagealign.base.errors import StagealignError

PROMPTS = 20


class Client:
    """Client that asks one kind of question about `PROMPTS` prompts and keeps the answers in `home`."""

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
            measured = measure(items, meter, {})
        finally:
            judge.close()
        return measured.prompts_used, measured.failures


class Policy(Client):
    name = "served policy"

    def ask(self, server: Neighbour, **options: Any) -> tuple[int, int]:
        from stagealign.boundary.meter import Meter, kept_at, measure
        from stagealign.boundary.open_policy import open_policy
        from stagealign.boundary.request import BoundaryRequest
        from stagealign.boundary.sampling import MeterPrompt
        from stagealign.scoring.contest import Judged

        class Fair:
            """Oracle that scores all candidates equally."""

            @property
            def identity(self) -> Row:
                return {"kind": "fair"}

            def judge(self, contests: Any) -> Any:
                return (Judged((1.0,) * len(contest.on), (1.0,) * len(contest.off)) for contest in contests)

        policy = open_policy(BoundaryRequest("policy", "none", policy_url=server.url))
        items = [MeterPrompt(f"{n:02}", self.prompt(n), ("static",)) for n in range(PROMPTS)]
        measured = measure(
            items, Meter(policy.sampler, Fair(), *kept_at(self.home, policy.identity, {"kind": "fair"})), {}
        )
        return measured.prompts_used, measured.failures


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
        result = alpaca.evaluate(
            alpaca.EvaluationRequest(*files, "judge:judge", server.url, **({"workers": 2} | options))
        )
        self.last = result
        return len(result.preferences), len(result.failed)


def scenarios(client: Callable[[str], Client]) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (what was tried, expected outcome, faults) of each scenario for one kind of client."""
    name = client("names").name
    with neighbour(at_first) as server:
        wrong = _must(client("passing").ask, server, answered=(PROMPTS, 0))
        yield f"{name}: {', '.join(PASSING)}, once each", "tried again, all answered", wrong
    for act in ("500", *ODD, "strange numbers"):
        if name == Policy.name and act in ("half a character", "a wall of text", "strange numbers"):
            wanted = (PROMPTS, 0)  # repaired and long completions are completions too
        elif name == Judge.name and act == "strange numbers":
            wanted = (PROMPTS, 0)  # its verdict is valid
        else:
            wanted = (PROMPTS - 1, 1)
        subject = client(act.replace(" ", "-"))
        with neighbour(always_for(subject.prompt(3), act)) as server:
            wrong = _must(subject.ask, server, answered=wanted)
            server.act = good
            if not wrong:
                wrong = _must(subject.ask, server, answered=(PROMPTS, 0))
            asked = max((count for text, count in server.seen.items() if subject.prompt(5) in text), default=0)
            if asked > 2:  # a policy is asked for two completions
                wrong.append("what was answered was asked again")
        what = "used, as it is an answer" if wanted[1] == 0 else "that prompt failed with its reason, then mended"
        yield f"{name}: {act} for one prompt, always", what, wrong
    subject = client("gone")
    with neighbour(from_then(6, "500")) as server:
        wrong = _must(subject.ask, server, refused="in a row|again|HTTP 500")
        server.act, server.seen = good, Counter()
        if not wrong:
            wrong = _must(subject.ask, server, answered=(PROMPTS, 0))
        yield f"{name}: gone for good after 6 requests", "stopped soon, kept, went on", wrong
    subject = client("name")
    with neighbour(from_then(9, "other")) as server:
        wrong = _must(subject.ask, server, refused="model-1.*model-2")
        yield f"{name}: another model's name within a call", "refused, both named", wrong
    subject = client("names")
    with neighbour(good) as server:
        wrong = _must(subject.ask, server, answered=(PROMPTS, 0))
        server.name, server.seen = "model-2", Counter()
        asked_again = name != Alpaca.name
        if asked_again:
            wrong += _must(subject.ask, server, answered=(PROMPTS, 0))
            if sum(server.seen.values()) < PROMPTS:
                wrong.append("verdicts of the other model were used again")
        else:
            wrong += _must(subject.ask, server, refused="model-1, model-2")
        what = "nothing of the other used" if asked_again else "refused, both named"
        yield f"{name}: another model's name between calls", what, wrong


def _must(
    ask: Callable[..., tuple[int, int]],
    server: Neighbour,
    answered: tuple[int, int] | None = None,
    refused: str = "",
    **options: Any,
) -> list[str]:
    """Faults of a call, which must give (answered, failed) prompts as wanted, or a one-line error that matches."""
    import re

    started = time.monotonic()
    try:
        counts = ask(server, **options)
    except StagealignError as error:
        text = str(error)
        if not refused or not re.search(refused, text):
            return [f"refused: {text[:300]}"]
        return [f"a message of several lines: {text[:200]!r}"] if "\n" in text else []
    except Exception as error:
        return [f"{type(error).__name__}: {str(error)[:300]}"]
    took = time.monotonic() - started
    if counts != answered:
        return [f"(answered, failed) {counts}, wanted {answered or 'an error'}, in {took:.0f} s"]
    return []


def spending(home: Path) -> tuple[str, str, list[str]]:
    """Scenario of a judge that bills a million tokens for a small question, with a limit of one dollar."""
    client = Alpaca(home)
    with neighbour(good) as server:
        server.bill = 10**6
        wrong = _must(client.ask, server, answered=(0, PROMPTS), spend=1.0, price="10,30", workers=1)
        asked = server.number
    if not wrong and not client.last.stopped:
        wrong.append("it did not say that it stopped")
    return "judge of AlpacaEval: bills ten times the limit in one answer", f"stopped after {asked} request", wrong


def measure(folder: Path) -> Iterator[Row]:
    """Yields one row for each client and fault."""
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
