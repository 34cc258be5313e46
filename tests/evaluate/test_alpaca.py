"""AlpacaEval's official judge: the package's own requests and preferences, its price, and a spending limit."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factory_alpaca import KEY, MODEL, needs_client, needs_package, rows, sigmoid

from stagealign.base import server as serving
from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.answers import Bill, JudgeAnswer
from stagealign.evaluate.alpaca_eval.result import WinRateResult
from stagealign.evaluate.alpaca_eval.rows import read

pytestmark = pytest.mark.usefixtures("own_home")


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
    answers = {item.hash: JudgeAnswer(failed=why) for item, why in zip(battle.items, reasons, strict=True)}
    lines = [
        line for line in WinRateResult(battle, answers, {}, Bill(), None, 1.0).details if line.startswith("failed")
    ]
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
