"""AlpacaEval in its room: the package's own requests, a server that misbehaves, a tiny local judge, real records."""

import importlib.util
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagealign.base import server as serving
from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.answers import Answer, Answers, Spent
from stagealign.evaluate.alpaca_eval.result import Result
from stagealign.evaluate.alpaca_eval.rows import Item, read

KEY = "sk-planted-51b07c44ae"
MODEL = "gpt-4-1106-preview"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the extra `eval` is not installed"
)
needs_client = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("httpx", "tenacity")),
    reason="the extra `judge` is not installed",
)
QUALITY = {"poor": 0.0, "fair": 1.0, "good": 2.0}


def rows(count=12, quality="fair", generator="model"):
    """Completions whose first word is their quality; the i-th prompt names its number."""
    return [
        {
            "instruction": f"Task {i}: explain it.",
            "output": f"{quality} text {i} by {generator}",
            "generator": generator,
        }
        for i in range(count)
    ]


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


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch, caplog, capfd):
    """Everything goes below a folder of the test, and the planted key into none of it and on no terminal."""
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in (*serving.KEYS, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
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
    from tests.oracle.test_judge import Judge

    class Grader(Judge):
        odd = None
        """(word in a prompt, body to answer it with); None where it misbehaves for no prompt."""

        def answer(self, request):
            text = request["messages"][-1]["content"]
            if self.odd and self.odd[0] in text:
                return self.odd[1]
            first, second = re.findall(r'"output": """(\w*)', text)[:2]
            gap = 2 * (QUALITY.get(first, 1) - QUALITY.get(second, 1)) + 0.25  # and a little the first
            top = [{"token": t, "logprob": -math.log1p(math.exp(-s * gap)) - 0.1} for t, s in (("m", 1), ("M", -1))]
            top = [{**one, "bytes": None} for one in (*top, {"token": "The", "logprob": -3.0})]
            choice = {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "m" if gap > 0 else "M"},
            }
            if self.logprobs and request.get("logprobs"):
                content = [{"token": "m", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
                choice["logprobs"] = {"content": content}
            usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 1, "total_tokens": len(text) // 4 + 1}
            return {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": self.name,
                "choices": [choice],
                "usage": usage,
            }

        @property
        def asked(self):
            """Prompts in the order they came."""
            texts = (request["messages"][-1]["content"] for _, _, request in self.seen)
            return [found[0] for found in (re.findall(r"Task \d+|Say yes", text) for text in texts)]

    start = serving.Server.__init__
    monkeypatch.setattr(
        serving.Server, "__init__", lambda self, url: start(self, url, timeout=5.0, attempts=2, backoff=0.01)
    )
    with Grader() as one:
        one.logprobs, one.name = True, MODEL
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def ask(files, server):
    """Evaluates by the official judge on that server."""

    def run(outputs=None, baseline=None, heard=None, **changes):
        options = {"judge": "official", "judge_url": server.url, "spend": 10.0, "workers": 3} | changes
        return alpaca.evaluate(alpaca.Request(*files(outputs, baseline), **options), heard)

    return run


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# The official judge


@needs_package
def test_win_rate_is_the_judges_mean_probability_by_hand(ask, server):
    """Good against fair: the better is preferred with sigmoid(2.25) where it is shown first, else sigmoid(1.75)."""
    found = ask()
    firsts = [
        re.findall(r'"output": """(\w+)', request["messages"][-1]["content"])[0] == "good"
        for _, _, request in server.seen
    ]
    assert 0 < sum(firsts) < len(firsts) == 12  # both orders come up
    expected = sum(sigmoid(2.25) if first else sigmoid(1.75) for first in firsts) / 12
    record = found.plain()
    assert record["win_rate"] == pytest.approx(100 * expected, abs=1e-9)
    spread = sum((p - (1 + expected)) ** 2 for p in found.preferences) / 11
    assert record["standard_error"] == pytest.approx(100 * math.sqrt(spread / 12))
    assert record["n"] == record["answered"] == 12
    assert record["failed"] == []
    assert record["judge"]["served"] == MODEL
    assert record["letter_probability"] == pytest.approx(math.exp(-0.1))
    assert found.reliable
    shown = [sigmoid(2.25) if first else 1 - sigmoid(1.75) for first in firsts]
    assert record["first_shown_preferred"] == pytest.approx(sum(shown) / 12)


@needs_package
def test_requests_and_preferences_are_the_packages_own(ask, server, files, monkeypatch):
    """The package's annotator and its OpenAI client, run against the same server: equal bodies, equal preferences.

    Prompts hold what a template can trip over: braces, quotes, placeholders, other scripts, an empty completion.
    """
    from stagealign.evaluate.alpaca_eval import official

    outputs, baseline = rows(generator="outputs"), rows(quality="good", generator="baseline")
    for i, text in enumerate(('{"a": "b"}', "{output_1}", '"""', "Größe 雪 \u2028", "  x  ", "")):
        outputs[i] |= {"instruction": f"Task {i} {text}", "output": f"{'good ' * bool(text)}{text}"}
        baseline[i]["instruction"] = f"Task {i} {text}"
    ours = ask(outputs, baseline)
    mine = list(server.seen)
    server.seen.clear()
    with official.contained():
        import alpaca_eval

        annotator = alpaca_eval.annotators.PairwiseAnnotator(annotators_config=official.NAME, caching_path=None)
        settings = {"openai_api_base": server.url, "openai_api_keys": ["sk-other"], "num_procs": 1}
        theirs = annotator.annotate_head2head(outputs_1=baseline, outputs_2=outputs, **settings)
        winrate = alpaca_eval.metrics.get_winrate(theirs)

    def bodies(seen):
        return sorted(json.dumps(request, sort_keys=True) for _, _, request in seen)

    assert bodies(mine) == bodies(server.seen)
    assert len(mine) == 12
    assert {path for path, _, _ in mine} == {path for path, _, _ in server.seen}
    preferences = {row["instruction"]: row["preference"] for row in theirs}
    for item in ours.battle.items:
        assert ours.answers[item.hash].preference == pytest.approx(preferences[item.prompt], abs=1e-12)
    assert ours.metric["value"] == pytest.approx(winrate["win_rate"], abs=1e-9)
    assert ours.metric["standard_error"] == pytest.approx(winrate["standard_error"], abs=1e-9)
    assert ours.garbled == [1]


@needs_package
@needs_client
def test_the_installed_package_is_the_same_after_a_run(files, server, tmp_path):
    """Name, size and time of every file of it, before and after a whole run in a process of its own."""
    folder = Path(importlib.util.find_spec("alpaca_eval").origin).parent

    def state():
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}

    before, (outputs, baseline) = state(), files()
    assert len(before) > 100
    words = ["alpaca-eval", outputs, "--baseline", baseline, "--judge", "official", "--judge-url", server.url]
    words += ["--spend", "1", "--json", "record.json", "--annotations", "table.parquet"]
    script = f"import sys; sys.argv = {['stagealign', *words]!r}; from stagealign.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "win rate 8" in done.stdout
    assert "12 of 12 prompts" in done.stderr  # and what it costs stands there before
    assert "$" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert state() == before
    here = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert here == {"outputs.json", "baseline.json", "home", "record.json", "table.parquet"}
    assert json.loads(Path("record.json").read_text(encoding="utf-8"))["cost"] == pytest.approx(0.06, rel=0.5)


@needs_package
def test_importing_the_package_leaves_process_and_key_alone():
    """In a fresh process: log level, handlers, environment and warnings are as before, and it holds no key."""
    script = (
        "import logging, os; before = dict(os.environ)\n"
        "from stagealign.evaluate.alpaca_eval import official; official.load()\n"
        "import alpaca_eval\n"
        "assert alpaca_eval.constants.OPENAI_API_KEYS is None\n"
        "assert dict(os.environ) == before\n"
        "assert logging.getLogger().level == logging.WARNING and not logging.getLogger().handlers"
    )
    environment = {**os.environ, "OPENAI_API_KEYS": KEY, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


@needs_package
def test_price_is_that_of_the_package():
    from stagealign.evaluate.alpaca_eval import official
    from stagealign.evaluate.alpaca_eval.asking import PRICES

    model = official.load().model
    with official.contained():
        from alpaca_eval.decoders.openai import _get_price_per_token
    assert PRICES[model].prompt == pytest.approx(1e6 * _get_price_per_token(model))
    assert PRICES[model].of(1000, 0) == pytest.approx(0.01)


@needs_package
def test_a_spending_limit_stops_cleanly_and_the_next_call_goes_on(ask, server):
    """About $0.005 a question: $0.03 pays some and not all; no question is ever asked twice."""
    whole = ask(keep=False)
    server.seen.clear()
    first = ask(spend=0.03)
    assert 0 < len(server.seen) < 12
    assert first.cost_now <= 0.03
    assert first.stopped
    assert not first.reliable
    assert {reason for _, reason in first.failed} == {"not asked"}
    assert "not asked yet" in first.sentence
    assert len(first.failed) == 12 - len(server.seen)
    for _ in range(9):
        last = ask(spend=0.03)
        assert last.cost_now <= 0.03
        if last.reliable:
            break
    assert len(server.seen) == len(set(server.asked)) == 12
    assert last.preferences == whole.preferences
    assert last.spent == whole.spent
    assert last.spent.cost == pytest.approx(whole.cost_now)


@needs_package
def test_a_limit_of_nothing_asks_nothing_and_no_limit_is_an_error(ask, server):
    class Heard(alpaca.Silent):
        def planned(self, prompts, kept, tokens, cost, price):
            self.said = (prompts, kept, tokens, cost, price)

    heard = Heard()
    assert ask(spend=0.0, heard=heard).preferences == []
    assert heard.said[:2] == (12, 0)
    assert heard.said[3] == pytest.approx(heard.said[2] * 1e-5, rel=0.02)
    with pytest.raises(StagealignError, match=r"costs about \$0\.\d\d; .* --spend 1"):
        ask(spend=None)
    assert server.seen == []


@needs_package
@pytest.mark.parametrize("changes", [{}, {"judge": "judge:other", "price": "1,2"}, {"price": "0,0"}])
def test_showing_the_cost_needs_no_key_and_asks_nothing(ask, server, monkeypatch, changes):
    monkeypatch.delenv(serving.KEYS[1])
    found = ask(spend=0.0, **changes)
    assert found.preferences == []
    assert found.stopped == "--spend 0 only shows the cost"
    assert server.seen == []


def test_failures_are_grouped_by_reason_with_the_first_prompts(files, tmp_path):
    battle = read(*files(), None)
    reasons = ["no letter"] * 5 + ["too long"] * 2 + [f"odd {i}" for i in range(5)]
    answers = {item.hash: Answer(failed=why) for item, why in zip(battle.items, reasons, strict=True)}
    lines = [line for line in Result(battle, answers, {}, Spent(), None, 1.0).details if line.startswith("failed")]
    shown = ", ".join(f"{item.index} {item.prompt!r}" for item in battle.items[:3])
    assert lines[0] == f"failed: no letter: 5; prompt {shown}, ..."
    assert lines[1].startswith("failed: too long: 2; prompt ")
    assert len(lines) == 6
    assert lines[-1] == "failed for 2 other reasons: 2"


@needs_package
def test_what_is_shown_beforehand_is_near_what_it_costs(ask):
    """Within 20% on texts of a usual length: the server counts four characters a token, and so do we."""
    long = [row | {"output": f"good {'word ' * 200}{i}"} for i, row in enumerate(rows())]

    class Heard(alpaca.Silent):
        def planned(self, prompts, kept, tokens, cost, price):
            self.cost = cost

    heard = Heard()
    assert ask(long, heard=heard).cost_now == pytest.approx(heard.cost, rel=0.2)


@needs_package
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"oops": 1}, "not a chat completion"),
        (
            {"model": MODEL, "choices": [{"message": {"content": "both"}}], "usage": {"prompt_tokens": 400}},
            "neither 'm' nor 'M'",
        ),
        (
            {
                "model": MODEL,
                "choices": [
                    {
                        "message": {"content": "x"},
                        "logprobs": {"content": [{"top_logprobs": [{"token": "x", "logprob": -1}]}]},
                    }
                ],
            },
            "neither",
        ),
    ],
)
def test_a_failed_answer_is_listed_and_asked_again(ask, server, body, reason):
    """One of 12 is 8%: unreliable. The next call asks for that one alone. It is a failure, never a draw."""
    server.odd = ("Task 7:", body)
    first = ask()
    ((item, why),) = first.failed
    assert item.prompt.startswith("Task 7:")
    assert reason in why
    assert len(first.preferences) == 11
    assert 1.5 not in first.preferences
    assert "1 failed: unreliable, as more than 1%" in first.sentence
    record = first.plain()
    assert record["failed"] == [{"prompt_index": 7, "prompt_hash": item.hash, "reason": why}]
    assert record["n"] == 12
    assert first.table()[7]["preference"] is None
    server.odd = None
    server.seen.clear()
    again = ask()
    assert server.asked == ["Task 7"]
    assert again.failed == []
    assert again.cost_now < first.cost_now
    assert again.spent.cost >= again.cost_now + 11 / 12 * first.cost_now * 0.9


@needs_package
def test_an_interrupt_keeps_every_answer(ask, server):
    class Heard(alpaca.Silent):
        count = 0

        def answered(self, done, total):
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(heard=Heard())
    asked = len(server.seen)
    assert 4 <= asked < 12
    assert ask().reliable
    assert len(server.seen) == len(set(server.asked)) == 12


@needs_package
def test_another_version_of_the_judge_is_refused(ask, server):
    server.odd = ("Task 3:", server_answer("gpt-4-other"))
    with pytest.raises(StagealignError, match=r"the server now names .*never mixed: `--served"):
        ask(workers=1)
    server.odd = None
    with pytest.raises(StagealignError, match="2 versions of the judge: gpt-4-1106-preview, gpt-4-other"):
        ask()
    found = ask(served=MODEL)
    assert found.reliable
    assert found.judge["served"] == MODEL
    server.seen.clear()
    server.name = "gpt-4-other"
    other = ask(served="gpt-4-other")
    assert other.reliable
    assert len(server.seen) == 11  # one is kept
    assert other.judge["served"] == "gpt-4-other"


def server_answer(name):
    top = [{"token": "m", "logprob": -0.1}]
    choice = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    return {"model": name, "choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 1}}


@needs_package
def test_a_refused_key_stops_at_once_and_a_dead_server_soon(ask, server):
    server.always = (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(StagealignError, match=r"HTTP 401.*\[key\].*what was answered is kept"):
        ask()
    assert len(server.seen) <= 4
    server.seen.clear()
    server.always = (500, {}, {"error": "down"})
    with pytest.raises(StagealignError, match="HTTP 500"):
        ask(workers=4)
    assert len(server.seen) == 2  # one prompt alone, two attempts


@needs_package
def test_a_judge_that_dies_in_the_middle_is_still_asked_again(ask, server, monkeypatch):
    whole = server.answer

    def dies(request):
        if len(server.seen) > 1:
            server.always = (500, {}, {"error": "down"})
        return whole(request)

    monkeypatch.setattr(server, "answer", dies)
    with pytest.raises(StagealignError, match="HTTP 500"):
        ask(workers=1)
    assert len(server.seen) >= 2 + 2 * 9  # it answered, then ten prompts, two attempts each
    server.always = None
    monkeypatch.setattr(server, "answer", whole)
    assert len(ask().preferences) == 12


@needs_package
@pytest.mark.parametrize("judge", ["official", "judge:m"])
def test_a_judge_that_is_not_there_is_said_within_seconds(files, judge, monkeypatch):
    """With the attempts and waits of real use: they would take over a minute."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    closed.close()
    request = alpaca.Request(*files(), judge=judge, judge_url=url, spend=1.0, price="1,1")
    started = time.monotonic()
    with pytest.raises(StagealignError, match=r"cannot connect.*\(3 attempts\)"):
        alpaca.evaluate(request)
    assert time.monotonic() - started < 10


@needs_package
def test_equal_texts_are_draws_and_missing_ones_failures(ask, server):
    """Three of 300 are missing, 1%: still reliable. The judge sees neither."""
    outputs, baseline = rows(300, "good", "outputs"), rows(300, "fair", "baseline")
    outputs[5]["output"] = baseline[5]["output"]
    found = ask(outputs[:297], baseline, workers=8)
    assert found.drawn == 1
    assert found.answers[found.battle.items[5].hash].preference == 1.5
    assert [(item.index, why) for item, why in found.failed] == [(i, "no completion given") for i in (297, 298, 299)]
    assert found.reliable
    assert "over 297 of 300 prompts; 3 failed" in found.sentence
    assert [row["prompt_index"] for row in found.table()] == list(range(297))  # nothing was compared on the others
    assert len(server.seen) == 296


# Any served model


@needs_package
def test_a_judge_without_logprobs_is_read_by_its_text(ask, server):
    """Its letter is the whole verdict: the better one always wins, and a draw is not possible."""
    server.logprobs, server.name = False, "judge-1"
    found = ask(judge="judge:mine", spend=None)
    assert found.judge["style"] == "text"
    assert found.judge["model"] == "mine"
    assert found.metric["value"] == 100.0
    assert found.spent.cost is None
    assert server.asked[:2] == ["Say yes"] * 2


@needs_package
def test_a_priced_judge_of_another_name(ask, server):
    found = ask(judge="judge:mine", price="2,6", spend=1.0)
    assert found.judge["style"] == "logprobs"
    assert (
        found.cost_now
        >= found.spent.cost
        == pytest.approx((2 * found.spent.prompt_tokens + 6 * found.spent.completion_tokens) / 1e6)
    )
    assert found.spent.completion_tokens == 12


@needs_package
def test_a_judge_that_changed_between_calls_is_refused(ask, server):
    ask(judge="judge:mine", spend=None)
    server.name = "newer"
    with pytest.raises(StagealignError, match="2 versions of the judge: gpt-4-1106-preview, newer"):
        ask(judge="judge:mine", spend=None)
    assert ask(judge="judge:mine", spend=None, served="newer").judge["served"] == "newer"


# Errors before any work


@needs_client
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "gpt-4"}, "--judge 'gpt-4': unknown; one of official"),
        ({"judge": "local:"}, "--judge 'local:': unknown"),
        ({"judge": "official:x"}, "unknown"),
        ({"judge": "judge:x", "judge_url": None, "spend": None}, "needs --judge-url"),
        ({"judge": "judge:x"}, "the price of 'x' is not known; add --price"),
        ({"judge": "local:x", "judge_url": None}, "--spend with --judge 'local:x'"),
        ({"spend": -1.0}, "--spend -1.0: not an amount"),
        ({"spend": math.nan}, "not an amount"),
    ],
)
def test_options_that_cannot_be(ask, server, changes, message):
    with pytest.raises(StagealignError, match=re.escape(message)):
        ask(**changes)
    assert server.seen == []


def test_the_official_judge_needs_a_key(files, monkeypatch):
    monkeypatch.delenv(serving.KEYS[1])
    with pytest.raises(StagealignError, match="no key found; set the environment variable"):
        alpaca.evaluate(alpaca.Request(*files(), judge="official"))


@needs_package
@needs_client
def test_a_price_that_is_none(ask, server):
    for price in ("10", "a,b", "1,-2", "1,inf"):
        with pytest.raises(StagealignError, match="IN,OUT expected"):
            ask(price=price)
    assert server.seen == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, b: ([*o, o[3]], b), r"outputs.json: 1 prompt ('Task 3: explain it.' (row 13)) found more than once"),
        (
            lambda o, b: (o, [*b, b[3]]),
            r"baseline.json: 1 prompt ('Task 3: explain it.' (row 13)) found more than once",
        ),
        (
            lambda o, b: (o, b[:-2]),
            "2 prompts ('Task 10: explain it.' (row 11), 'Task 11: explain it.' (row 12)) not in",
        ),
        (lambda o, b: (o[:-1], b), "1 of 12 prompts have no completion ('Task 11: explain it.')"),
        (lambda o, b: ([o[0] | {"output": None}], b), "row 1, column 'output': "),
        (lambda o, b: ([o[0] | {"output": "half \ud83d"}], b), "row 1, column 'output': half a character"),
        (lambda o, b: ([{"text": "x"}], b), "row 1: no column 'instruction'"),
        (lambda o, b: (o[:6] + rows(generator="two")[6:], b), "completions of 2 generators found (outputs, two)"),
        (lambda o, b: ([], b), "no rows"),
        (lambda o, b: (o, [row | {"prompt_index": 4} for row in b]), "prompt_index 4 found more than once"),
        (lambda o, b: (o, [row | {"prompt_index": "x"} for row in b]), "prompt_index 'x'; a whole number"),
    ],
)
def test_files_that_cannot_be_compared(files, change, message):
    """Before the judge is even looked for."""
    outputs, baseline = change(rows(generator="outputs"), rows(generator="baseline"))
    with pytest.raises(StagealignError, match=re.escape(message)):
        alpaca.evaluate(alpaca.Request(*files(outputs, baseline), judge="local:nowhere"))


def test_a_file_cut_in_half_or_missing(files):
    outputs, baseline = files()
    text = Path(outputs).read_text(encoding="utf-8")
    Path(outputs).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(StagealignError, match=r"outputs\.json"):
        read(outputs, baseline)
    with pytest.raises(StagealignError, match=r"nowhere\.json: no such file"):
        read("nowhere.json", baseline)
    with pytest.raises(StagealignError, match="no such file"):
        read("tatsu-lab/alpaca_eval", baseline)


def test_one_of_several_generators(files):
    outputs, baseline = files(rows(generator="a") + rows(quality="poor", generator="b"))
    assert read(outputs, baseline, "b").items[0].model == "poor text 0 by b"
    with pytest.raises(StagealignError, match=r"generator 'c' not found; it has a, b"):
        read(outputs, baseline, "c")


# A local judge


@pytest.fixture
def local(tiny):
    """A judge of random weights that reads prompts of some thousand bytes."""
    if importlib.util.find_spec("alpaca_eval") is None:
        pytest.skip("the extra `eval` is not installed")
    from stagealign.evaluate.alpaca_eval import official
    from stagealign.evaluate.alpaca_eval.local import LocalJudge

    def build(longest=4096, batch_tokens=None, **shape):
        model = tiny(**shape)
        model.model.config.max_position_embeddings = longest
        return LocalJudge(model, "random", official.load(), batch_tokens)

    return build


def questions(judge, count=4):
    return judge.official.questions(
        [Item(i, f"Task {i}", "fair " * (i + 1), "good " * (5 * i + 2)) for i in range(count)]
    )


@pytest.mark.parametrize("shape", ["llama", "neox"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_batch_judges_as_one_by_one(local, shape, chat):
    judge = local(shape=shape, chat=chat, batch_tokens=2**20)
    assert judge.letters == {"m": [judge.letters["m"][0]], "M": [judge.letters["M"][0]]}
    ids = [judge.prompt_ids(one) for one in questions(judge)]
    assert len({len(one) for one in ids}) == 4
    together = judge.logprobs(ids)
    alone = [judge.logprobs([one])[0].tolist() for one in ids]
    assert together.flatten().tolist() == pytest.approx([one for pair in alone for one in pair], abs=1e-5)
    kept = {}
    judge.ask(questions(judge), lambda question, answer: kept.update({question.item.index: answer}))
    for question, (m, other), row in zip(questions(judge), alone, ids, strict=True):
        top = [{"token": "m", "logprob": m}, {"token": "M", "logprob": other}]
        choice = {"logprobs": {"content": [{"top_logprobs": top}]}}
        first = judge.official.first_preferred(choice)  # the official parser reads the same numbers
        answer = kept[question.item.index]
        assert answer.first == pytest.approx(first, abs=1e-5)
        assert answer.preference == pytest.approx(1 + first if question.switched else 2 - first, abs=1e-5)
        assert answer.letters == pytest.approx(math.exp(m) + math.exp(other), rel=1e-4)
        assert answer.prompt_tokens == len(row)


def test_the_letter_is_read_where_the_prompt_ends(local):
    """Raise the logit of "m" by ln 9 in the head: the odds of "m" against "M" grow ninefold."""
    import torch

    judge = local(tied=False)
    ids = judge.prompt_ids(questions(judge)[0])
    before = judge.logprobs([ids])[0]
    head = judge.lm.head
    with torch.inference_mode():
        state = judge.lm.body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        head.weight[judge.letters["m"][0]] += math.log(9) * state / state.dot(state)
    after = judge.logprobs([ids])[0]
    assert float((after[0] - after[1]) - (before[0] - before[1])) == pytest.approx(math.log(9), abs=1e-4)


def test_a_prompt_longer_than_the_judge_reads_fails_and_is_not_cut(local):
    judge = local()
    lengths = sorted(len(judge.prompt_ids(one)) for one in questions(judge))
    kept = {}
    short = local(longest=lengths[1])
    short.ask(questions(short), lambda question, answer: kept.update({question.item.index: answer}))
    failed = [one.failed for one in kept.values() if one.preference is None]
    assert len(failed) == 2
    assert f"tokens; the judge reads {lengths[1]}" in failed[0]


def test_a_template_without_a_system_role(local):
    judge = local(chat=True)
    judge.lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    text = judge.lm.tokenizer.decode(judge.prompt_ids(questions(judge)[0]))
    assert text.startswith("<user>You are a highly efficient assistant")
    assert "## Model Outputs" in text


def test_a_local_judge_from_a_folder_is_kept(local, files, tmp_path, monkeypatch):
    judge = local(chat=True)
    folder = tmp_path / "judge"
    judge.lm.model.save_pretrained(folder)
    judge.lm.tokenizer.save_pretrained(folder)
    request = alpaca.Request(*files(), judge=f"local:{folder}")
    found = alpaca.evaluate(request)
    assert found.reliable
    assert found.cost_now is None
    assert found.judge["served"].startswith("sha256:")
    from stagealign.evaluate.alpaca_eval.local import LocalJudge

    monkeypatch.setattr(LocalJudge, "logprobs", None)  # nothing is judged again
    again = alpaca.evaluate(request)
    assert again.preferences == found.preferences
    assert again.plain()["judge"] == found.plain()["judge"]


# Recorded annotations


def test_recorded_annotations_by_prompt_and_by_index(files, tmp_path):
    """(1 + 2 + 1.25 * 10) / 12 - 1 = 29.17%; NaN is no draw, 0 is AlpacaEval's old code of one."""
    outputs, baseline = files()
    battle = read(outputs, baseline)
    preferences = [1, 2, *[1.25] * 10]
    full = [
        {
            "instruction": item.prompt,
            "output_1": item.baseline,
            "output_2": item.model,
            "generator_1": "baseline",
            "generator_2": "outputs",
            "annotator": "someone",
            "preference": p,
        }
        for item, p in zip(battle.items, preferences, strict=True)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(full), encoding="utf-8")
    found = alpaca.evaluate(alpaca.Request(outputs, baseline, judge=f"recorded:{path}"))
    assert found.metric["value"] == pytest.approx(100 * (15.5 / 12 - 1))
    assert found.judge["annotators"] == ["someone"]

    alpaca.write(found, tmp_path / "table.csv")
    alpaca.write(found, tmp_path / "table.jsonl")
    alpaca.write(found, tmp_path / "table.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        again = alpaca.evaluate(alpaca.Request(outputs, baseline, judge=f"recorded:{tmp_path / 'table'}.{ending}"))
        assert again.preferences == pytest.approx(preferences)

    for odd, answered in ((math.nan, 11), (None, 11), (-1, 11), (7, 11), (0, 12)):
        full[0]["preference"] = odd
        path.write_text(json.dumps(full), encoding="utf-8")
        found = alpaca.evaluate(alpaca.Request(outputs, baseline, judge=f"recorded:{path}"))
        assert len(found.preferences) == answered
        assert found.reliable == (answered == 12)
        json.dumps(found.plain(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: [*t, t[2]],
            "2 prompts ('Task 2: explain it.' (row 3), 'Task 2: explain it.' (row 13)) annotated more",
        ),
        (lambda t: [*t, t[2] | {"instruction": "New?"}], "1 prompt ('New?' (row 13)) not in the baseline"),
        (lambda t: [t[0] | {"output_2": "edited"}, *t[1:]], "annotated for other texts than those given"),
        (lambda t: [t[0] | {"model_chars": 3}, *t[1:]], "1 prompt ('Task 0: explain it.' (row 1)) annotated for other"),
        (lambda t: [row | {"generator_2": "other"} for row in t], "no annotation of 'outputs'; it has other"),
        (lambda t: [{"prompt_index": 0}], "`preference`"),
        (lambda t: [{"preference": 1}], "neither `instruction` nor `prompt_index`"),
    ],
)
def test_recorded_annotations_that_do_not_fit(files, tmp_path, change, message):
    outputs, baseline = files()
    table = [
        {"instruction": item.prompt, "output_2": item.model, "generator_2": "outputs", "preference": 1.5}
        for item in read(outputs, baseline).items
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(change(table)), encoding="utf-8")
    with pytest.raises(StagealignError, match=re.escape(message)):
        alpaca.evaluate(alpaca.Request(outputs, baseline, judge=f"recorded:{path}"))


def test_published_win_rates_come_back_from_published_annotations(shared_data, tmp_path):
    """29 models judged by the official annotator: win rate and standard error of the leaderboard, to 1e-6."""
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    texts = pd.read_parquet(folder / "outputs.parquet").merge(pd.read_parquet(folder / "instructions.parquet"))
    judged = pd.read_parquet(folder / "gpt4_turbo_preferences.parquet")
    published = pd.read_csv(folder / "leaderboard.csv", index_col=0)
    baseline = tmp_path / "baseline.parquet"
    texts[texts.generator == "gpt4_1106_preview"].to_parquet(baseline)
    names = sorted(judged.generator.unique())
    assert len(names) == 29
    for name in names:
        texts[texts.generator == name].to_parquet(tmp_path / "outputs.parquet")
        judged[judged.generator == name].to_parquet(tmp_path / "judged.parquet")
        recorded = f"recorded:{tmp_path / 'judged.parquet'}"
        found = alpaca.evaluate(alpaca.Request(str(tmp_path / "outputs.parquet"), str(baseline), judge=recorded))
        assert found.metric["value"] == pytest.approx(published.loc[name, "win_rate"], abs=1e-6)
        assert found.metric["standard_error"] == pytest.approx(published.loc[name, "standard_error"], abs=1e-6)
        assert len(found.battle.items) == 805
        assert len(found.preferences) == published.loc[name, "n_total"]
        assert found.reliable


# What is kept, the command


def test_kept_answers_survive_a_cut_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    kept = Answers(path)
    kept.add("a", Answer(1.25, served="x", prompt_tokens=10, cost=0.1))
    kept.add("b", Answer(1.5, served="x", prompt_tokens=10, cost=0.1))
    kept.add("c", Answer(failed="no letter", prompt_tokens=10, cost=0.1))
    kept.add("d", Answer(failed="no answer"))  # neither answered nor paid for
    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    path.write_bytes(whole[: whole.index(b"\n") + 20])
    found = Answers(path)
    assert (found.damaged, list(found.kept)) == (1, ["a"])
    found.add("b", Answer(1.75, served="x"))
    again = Answers(path)
    assert again.get("a") == kept.get("a")
    assert again.get("b")["x"].preference == 1.75
    assert again.damaged == 1
    assert os.stat(path).st_mode & 0o077 == 0


@needs_package
def test_a_judge_prompt_or_text_of_another_kind_is_another_question(ask, server):
    ask()
    server.seen.clear()
    changed = rows(quality="good", generator="outputs")
    changed[4]["output"] += "!"
    ask(changed)
    assert server.asked == ["Task 4"]


@needs_package
def test_the_command_from_files_to_files(files, server, monkeypatch, capfd):
    from stagealign.cli import app as cli

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["stagealign", "alpaca-eval", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capfd.readouterr()
        return caught.value.code or 0, said.out, " ".join(said.err.split())

    outputs, baseline = files()
    words = (outputs, "--baseline", baseline, "--judge", "official", "--judge-url", server.url)
    code, out, err = call(*words, "--spend", "0")
    assert code == 0
    assert "no win rate, none of 12" in " ".join(out.split())
    assert "asking the judge about 12 of 12 prompts, 0 need no asking; about" in err
    assert "OpenAI's price list" in err
    code, out, err = call(*words, "--spend", "1", "--json", "-", "--annotations", "table.jsonl")
    record = json.loads(out)
    assert (code, record["answered"], record["reliable"]) == (0, 12, True)
    table = [json.loads(line) for line in Path("table.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"prompt_index", "generator", "preference", "baseline_chars", "model_chars"} <= table[0].keys()
    assert [row["prompt_index"] for row in table] == list(range(12))
    assert sum(row["preference"] - 1 for row in table) / 12 * 100 == pytest.approx(record["win_rate"])
    server.seen.clear()
    code, out, err = call(*words)
    assert code == 0
    assert "win rate" in out
    assert server.seen == []  # all is kept: it costs nothing, so no limit is asked for
    code, _, err = call(*words, "--annotations", "table.xlsx")
    assert code == 2
    assert "unknown ending" in err
    code, _, err = call(*words[:4], "gpt")
    assert code == 2
    assert "--judge 'gpt': unknown" in err
