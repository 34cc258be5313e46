"""Entry point of AlpacaEval 2: how often a judge prefers a model's completions to a baseline's.

`rows` reads the completions. `official` wraps the package's own prompt, order and parser. `asking`, `local` and
`recorded` are the judges; `answers` keeps their answers. `result` has the record and the table of annotations that
`stagealign lc-win-rate` reads.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.identity import fingerprint
from stagealign.base.words import short
from stagealign.data.preference_scale import scale_named
from stagealign.evaluate.alpaca_eval import rows
from stagealign.evaluate.alpaca_eval.answers import Bill, JudgeAnswer, KeptAnswers, key_of
from stagealign.evaluate.alpaca_eval.protocols import EvaluationListener, Judge, Silent
from stagealign.evaluate.alpaca_eval.result import FAILURES_ALLOWED, WinRateResult, writable, write
from stagealign.evaluate.alpaca_eval.rows import Battle
from stagealign.grid.prices import TokenPrice
from stagealign.store.artifact import Identity
from stagealign.store.home import default_home

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.official import Question

__all__ = ["EvaluationRequest", "WinRateResult", "evaluate", "writable", "write"]
KINDS = "official, judge:MODEL (with --judge-url), local:PATH or recorded:FILE"


@dataclass(frozen=True)
class EvaluationRequest:
    """Options of an evaluation."""

    outputs: str
    baseline: str
    judge: str
    judge_url: str | None = None
    generator: str | None = None
    """Generator to evaluate, if OUTPUTS has several."""
    spend: float | None = None
    """Most USD that this call may cost."""
    price: str | None = None
    """`IN,OUT`: USD for a million tokens of prompt and completion."""
    served: str | None = None
    """Version of the judge that all answers must name."""
    workers: int = 8
    keep: bool = True
    """True if answers are kept for later calls."""
    preference_scale: str | None = None
    """`1-2` or `0-1`: scale of recorded preferences; None to find it."""


def evaluate(request: EvaluationRequest, heard: EvaluationListener | None = None) -> WinRateResult:
    """Win rate of a model's completions.

    Kept answers are reused; failed questions are asked again. Raises StagealignError for wrong options, keys, files or
    prompts, before any question is asked.
    """
    started = time.monotonic()
    kind, rest = check(request)
    battle = rows.read(request.outputs, request.baseline, request.generator)
    if kind == "recorded":
        return _recorded(rest, battle, started, request.preference_scale)
    _enough(request.outputs, battle)
    judge = _open(kind, rest, request)
    try:
        return _judged(request, battle, judge, heard or Silent(), started)
    finally:
        judge.close()


def check(request: EvaluationRequest) -> tuple[str, str]:
    """(kind of judge, text after its colon). Raises StagealignError for options in conflict."""
    kind, colon, rest = request.judge.partition(":")
    if (
        kind not in ("official", "judge", "local", "recorded")
        or bool(rest) != (kind != "official")
        or bool(colon) != bool(rest)
    ):
        raise StagealignError(f"--judge {request.judge!r}: unknown; one of {KINDS}")
    if kind == "judge" and not request.judge_url:
        raise StagealignError(f"--judge {request.judge!r}: needs --judge-url, for example http://127.0.0.1:8000/v1")
    if kind in ("local", "recorded"):
        given = [name for name in ("judge_url", "spend", "price", "served") if getattr(request, name) is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise StagealignError(f"{option} with --judge {request.judge!r}: it is not served; leave {option} out")
    if request.preference_scale is not None and kind != "recorded":
        raise StagealignError(
            f"--preference-scale with --judge {request.judge!r}: only recorded preferences have a scale; leave it out"
        )
    if request.spend is not None and not (math.isfinite(request.spend) and request.spend >= 0):
        raise StagealignError(f"--spend {request.spend}: not an amount; give USD, such as 12.50")
    if kind == "judge" and request.spend is not None and request.price is None:
        raise StagealignError(f"--spend {request.spend:g}: the price of {rest!r} is not known; add --price IN,OUT")
    if kind == "official" and request.spend != 0:
        _needs_key()
    return kind, rest


def _needs_key() -> None:
    from stagealign.base.server import KEYS

    if not any(os.environ.get(name, "").strip() for name in KEYS):
        raise StagealignError(f"--judge official: no key found; set the environment variable {' or '.join(KEYS)}")


def _open(kind: str, rest: str, request: EvaluationRequest) -> Judge:
    """Opens the judge. Raises StagealignError, and CannotRun if an extra is not installed."""
    from stagealign.evaluate.alpaca_eval import official

    annotator = official.load()
    if kind == "local":
        from stagealign.evaluate.alpaca_eval.local import open_local

        return open_local(rest, annotator)
    from stagealign.base.server import Server
    from stagealign.evaluate.alpaca_eval.asking import OFFICIAL_URL, PRICES, STYLES, ServedJudge, Terms

    model = annotator.model if kind == "official" else rest
    price = _price(request.price) if request.price else PRICES[model] if kind == "official" else None
    server = Server(request.judge_url or os.environ.get("OPENAI_BASE_URL") or OFFICIAL_URL)
    judge = ServedJudge(kind, model, server, annotator, Terms(price, request.spend, request.workers))
    if request.spend == 0:
        kept = (style for style in STYLES if _place(judge.identity_as(style)).exists())
        judge.style = next(kept, judge.style)
    elif kind == "judge":  # the official judge needs no check, which would cost money
        judge.check()
    return judge


def _price(text: str) -> TokenPrice:
    try:
        prompt, completion = (float(part) for part in text.split(","))
        if not (0 <= prompt < math.inf and 0 <= completion < math.inf):
            raise ValueError
    except ValueError:
        raise StagealignError(
            f"--price {text!r}: IN,OUT expected, in USD for a million tokens of prompt and completion; such as 10,30"
        ) from None
    return TokenPrice(prompt, completion, "given")


def _judged(
    request: EvaluationRequest, battle: Battle, judge: Judge, heard: EvaluationListener, started: float
) -> WinRateResult:
    """Result of a judge that is asked; answers of earlier calls are reused."""
    answers = _unasked(battle)
    drawn = sum(answer.preference is not None for answer in answers.values())
    asked = [item for item in battle.items if item.hash not in answers]
    kept = KeptAnswers(_place(judge.identity) if request.keep else None)
    keys = {item.hash: key_of(judge.identity, item) for item in asked}
    judge.expected = version = _version(request.served, [kept.get(key) for key in keys.values()], judge.named)
    answers |= {name: kept.get(key)[version] for name, key in keys.items() if version in kept.get(key)}
    all_questions = judge.official.questions(asked)
    # In hash order: if a limit stops the run, the prompts asked so far are a random sample.
    open_questions = (question for question in all_questions if question.item.hash not in answers)
    questions = sorted(open_questions, key=lambda question: question.item.hash)
    _plan(request, judge, questions, battle, heard)

    def keep(question: "Question", answer: JudgeAnswer) -> None:
        name = question.item.hash
        kept.add(keys[name], answer)
        answers[name] = answer
        heard.answered(len(answers), len(battle.items))

    stopped = judge.ask(questions, keep) if questions else None
    spent = Bill()
    for key in keys.values():
        for bill in kept.bills.get(key, []):
            spent.add(bill)
    return WinRateResult(
        battle=battle,
        answers=answers,
        judge={**judge.identity, "served": judge.expected, "alpaca_eval": judge.official.version},
        spent=spent,
        cost_now=None if judge.price is None else judge.spent,
        seconds=time.monotonic() - started,
        drawn=drawn,
        garbled=[question.item.index for question in all_questions if question.garbled],
        stopped=stopped,
        damaged=kept.damaged,
    )


def _enough(outputs: str, battle: Battle) -> None:
    """Raises BadData if too many completions are missing for a reliable result."""
    missing = [item for item in battle.items if item.model is None]
    if len(missing) > FAILURES_ALLOWED * len(battle.items):
        some = ", ".join(short(item.prompt) for item in missing[:3])
        raise BadData(
            f"{outputs}: {len(missing)} of {len(battle.items)} prompts have no completion ({some}), too many for a "
            "reliable result; sample them, or give a baseline of those prompts alone"
        )


def _unasked(battle: Battle) -> dict[str, JudgeAnswer]:
    """Answers that need no judge, by prompt hash: a missing completion is a failure, equal texts are a draw."""
    answers = {}
    for item in battle.items:
        if item.model is None:
            answers[item.hash] = JudgeAnswer(failed="no completion given")
        elif item.model == item.baseline:
            answers[item.hash] = JudgeAnswer(1.5)
    return answers


def _plan(
    request: EvaluationRequest, judge: Judge, questions: Sequence["Question"], battle: Battle, heard: EvaluationListener
) -> None:
    """Reports the number of questions and their cost. Raises StagealignError if they cost money without a limit."""
    if judge.price is None:
        return heard.planned(len(battle.items), len(battle.items) - len(questions), 0, None, None)
    tokens, cost = judge.estimate(questions)
    assert cost is not None, "a judge with a price estimates its cost"
    heard.planned(len(battle.items), len(battle.items) - len(questions), tokens, cost, judge.price.source)
    if questions and request.spend is None:
        raise StagealignError(
            f"--judge {request.judge!r}: asking {len(questions)} prompts costs about ${cost:.2f}; name the most that "
            f"it may cost, such as --spend {math.ceil(cost * 1.2)}"
        )
    return None


def _version(asked_for: str | None, kept: Sequence[Mapping[str | None, JudgeAnswer]], named: str | None) -> str | None:
    """Version of the judge for this result; None if the first answer decides.

    It is `asked_for`, else the version of the kept answers, else `named` by the judge itself. Raises StagealignError if
    these differ: one result never mixes two versions.
    """
    known = {asked_for} if asked_for is not None else {version for versions in kept for version in versions}
    known |= {named} if named is not None else set()
    if len(known) > 1:
        names = sorted(map(str, known))
        raise StagealignError(
            f"{len(known)} versions of the judge: {', '.join(names)}, asked for, kept by earlier calls, or named by "
            f"itself; verdicts of two are never mixed: name the one to use, such as --served {named or names[-1]}"
        )
    return next(iter(known), None)


def _place(identity: Identity) -> Path:
    """File with the kept answers of a judge."""
    return default_home() / "alpaca" / f"{identity['kind']}-{fingerprint(dict(identity))}.jsonl"


def _recorded(source: str, battle: Battle, started: float, scale: str | None) -> WinRateResult:
    from stagealign.evaluate.alpaca_eval import recorded

    named = None if scale is None else scale_named(scale, "--preference-scale")
    answers, judges = recorded.annotations(source, battle, named)
    for item in battle.items:
        if item.hash not in answers:
            reason = "no completion given" if item.model is None else "no annotation recorded"
            answers[item.hash] = JudgeAnswer(failed=reason)
    who = recorded.identity_of(judges, rows.file_facts(source))
    return WinRateResult(battle, answers, who, Bill(), None, time.monotonic() - started)
