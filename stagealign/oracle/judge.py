"""Oracle that asks a served language model which of two candidates is better, in both orders."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from stagealign.base.asking import GIVE_UP, Asking
from stagealign.base.chat import ChatAnswer, content_of, first_token, was_cut
from stagealign.base.errors import StagealignError
from stagealign.base.server import FIRST_ATTEMPTS, RequestFailed, Server
from stagealign.oracle.judge_question import question
from stagealign.scoring.contest import BudgetSpent, Contest, Judged, by_pairs
from stagealign.scoring.served_weights import weights_behind
from stagealign.scoring.verdict_text import AB, MASS, letter_masses, verdict_in
from stagealign.store.artifact import Identity

STYLES: dict[str, dict[str, Any]] = {
    "logprobs": {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5},
    "text": {"temperature": 0, "max_tokens": 8},
    "reasoned": {"temperature": 0, "max_tokens": 1024},
    "thinking": {"max_completion_tokens": 4096},
}
"""Request settings, best first; `check` chooses the first whose answer has a verdict."""
FULLER = "reasoned"
"""Style in which a question is asked again whose answer was cut, or whose first token is mostly no letter."""
ONE_LETTER = "where one letter was asked for"
TIMEOUT = 180.0
"""Seconds for one answer."""


class LLMJudge:
    """Oracle that lets a language model compare each candidate of one source with each of the other source.

    Every pair is asked in both orders and is a vote. A candidate's score is the share of its comparisons won. A winner
    that changes with the order gives half a win to both; equal texts tie without a question. If a comparison fails, the
    verdict of its prompt is a failure, not a tie.

    The server must name the same model in every answer; another name is an error.
    """

    def __init__(self, model: str, server: Server, workers: int = 8, most_tokens: int | None = None):
        """`workers`: concurrent requests, not part of identity. `most_tokens`: budget of billed tokens."""
        self.model, self.server, self.workers, self.most_tokens = model, server, workers, most_tokens
        self.style: str | None = None
        """Key of `STYLES` for questions to this judge; None before `check`."""
        self.served: str | None = None
        """Name that the server gives its model; None before `check`, or if the server gives none."""
        self.weights: str | None = None
        """What tells the model of a local server from another of its name; None before `check`, or for a remote one."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LLMJudge({self.model!r}, {self.server!r})"

    @property
    def identity(self) -> Identity:
        """Model, its name by the server, and style; calls `check` first. The URL is not part of it.

        `weights` tells models apart that a local server names alike; see `weights_behind`.
        """
        self.check()
        known = {} if self.weights is None else {"weights": self.weights}
        return {
            "kind": "judge",
            "version": 3,
            "model": self.model,
            "served": self.served,
            "style": self.style,
            **known,
        }

    def check(self) -> None:
        """Finds the style of this judge with at most one small question per style; later calls do nothing.

        Raises StagealignError if no style gives an answer.
        """
        with self._lock:
            if self.style is not None:
                return
            refused = said = ""
            for style in STYLES:
                try:
                    asked = question(Contest("Say yes.", ("Yes.",), ("No.",)), "Yes.", "No.")
                    answer = self.server.chat(self.model, asked, STYLES[style], attempts=FIRST_ATTEMPTS)
                except RequestFailed as error:
                    refused = str(error)
                    if error.status not in (400, 422):  # the server does not know a setting
                        break
                    continue
                if preference(answer, style) is not None:
                    self.served = self.server.name_in(answer)
                    self.weights = weights_behind(self.server, self.model)
                    self.style = style
                    return
                said = self._said(answer, style)
            raise StagealignError(f"judge {self.model!r} at {self.server.url}: {self._advice(refused, said)}")

    @staticmethod
    def _advice(refused: str, said: str) -> str:
        """Why no style gave a verdict, and what to do about it."""
        if said:
            return f"{said}; name a judge that answers with A or B, or ends its answer with `Answer: A` or `Answer: B`"
        return (
            f"{refused}; check that the server runs and serves this model, and that the URL ends where its API starts "
            "(mostly /v1)"
        )

    def _said(self, answer: ChatAnswer, style: str) -> str:
        """What an answer without a verdict was, as the reason of a failure."""
        said = f"answered {self.server.said(content_of(answer) or '')!r} {ONE_LETTER}"
        return said + f", cut at {_most(style):,} tokens" * was_cut(answer)

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict per contest, in order, with `workers` concurrent requests.

        Raises StagealignError if the server names another model than before or if `GIVE_UP` prompts in a row failed,
        and BudgetSpent once `most_tokens` have been billed; verdicts until then are yielded first.
        """
        self.check()
        asking = Asking(
            requests=self._comparisons,
            answer=_verdict,
            failed=lambda verdict: verdict.failed,
            error=self._gone,
            workers=self.workers,
            allowed=lambda contest, under_way: not self._spent(),
            give_up=GIVE_UP,
            name="judge",
        )
        given = 0
        with closing(asking.in_order(contests)) as verdicts:
            for verdict in verdicts:
                given += 1
                yield verdict
        if given < len(contests):
            raise BudgetSpent(
                f"judge {self.model!r}: {self.server.tokens:,} tokens billed of at most {self.most_tokens:,}; "
                "run the same command with a higher --max-judge-tokens to continue"
            )

    def _gone(self, reason: str) -> StagealignError:
        last = f"judge {self.model!r} at {self.server.url}: {GIVE_UP} prompts in a row failed, the last "
        if ONE_LETTER in reason:
            return StagealignError(f"{last}as it {self._advice('', reason)}")
        return StagealignError(f"{last}with {reason}; run the same command again when the judge is back")

    def _spent(self) -> bool:
        """True if the budget is used up; requests that are running still finish and may exceed it."""
        return self.most_tokens is not None and self.server.tokens >= self.most_tokens

    def _comparisons(self, contest: Contest) -> list[Callable[[threading.Event], float]]:
        """One request per pair of different texts and order; the two orders of a pair are adjacent."""
        return [
            partial(self._first_wins, contest, *order)
            for i, j in _asked(contest)
            for order in ((contest.on[i], contest.off[j]), (contest.off[j], contest.on[i]))
        ]

    def _first_wins(self, contest: Contest, first: str, second: str, over: threading.Event) -> float:
        """1 if the judge prefers `first`, 0 if `second`, 0.5 if it has no preference. Raises RequestFailed."""
        assert self.style is not None
        if over.is_set():
            raise RequestFailed("not asked: another comparison of this prompt failed")
        asked, style = question(contest, first, second), self.style
        answer = self._answer(asked, style, over)
        wins = preference(answer, style)
        if wins is None and (style == "logprobs" or (style == "text" and was_cut(answer))):
            style = FULLER
            answer = self._answer(asked, style, over)
            wins = preference(answer, style)
        if wins is None:
            raise RequestFailed(self._said(answer, style))
        return wins

    def _answer(self, asked: Sequence[Mapping[str, str]], style: str, over: threading.Event) -> ChatAnswer:
        """The judge's answer. Raises RequestFailed, and StagealignError if the server names another model."""
        answer = self.server.chat(self.model, asked, STYLES[style], over)
        name = self.server.name_in(answer)
        if name != self.served:
            raise StagealignError(
                f"judge {self.model!r}: the server named its model {self.served!r} and now {name!r}; verdicts of "
                "two judges are never mixed: name one exact version and start again"
            )
        return answer

    def billed(self) -> int:
        """Tokens that the server has billed so far."""
        return self.server.tokens

    def close(self) -> None:
        """Closes the connections to the server."""
        self.server.close()


def _asked(contest: Contest) -> list[tuple[int, int]]:
    """Indices (on, off) of the pairs that the judge is asked about; equal texts tie without a question."""
    return [(i, j) for i, on in enumerate(contest.on) for j, off in enumerate(contest.off) if on != off]


def _verdict(contest: Contest, parts: Sequence[float | RequestFailed]) -> Judged:
    """Verdict of one contest; `parts`: two comparisons for each pair of `_asked`."""
    reasons = [str(part) for part in parts if isinstance(part, RequestFailed)]
    if reasons:
        real = (reason for reason in reasons if not reason.startswith("not asked"))
        return Judged((), (), failed=next(real, reasons[0]))
    wins = [part for part in parts if not isinstance(part, RequestFailed)]
    answers = dict(zip(_asked(contest), zip(wins[::2], wins[1::2], strict=True), strict=True))
    pairs = [(i, j) for i in range(len(contest.on)) for j in range(len(contest.off))]
    won = [(answers[pair][0] + 1 - answers[pair][1]) / 2 if pair in answers else 0.5 for pair in pairs]
    changed = sum(there != 1 - back for there, back in answers.values())
    return by_pairs(won, contest, len(answers), changed)


def _most(style: str) -> int:
    """Most tokens of an answer in a style."""
    settings = STYLES[style]
    return int(settings.get("max_tokens") or settings["max_completion_tokens"])


def preference(answer: ChatAnswer, style: str) -> float | None:
    """1 for A, 0 for B, 0.5 for a tie; None for an answer without a verdict.

    In the style `logprobs` the likelier letter of the first token wins, if both letters together have at least half of
    its probability. Else the text is read, but not that of one token: it may begin anything.
    """
    if style == "logprobs":
        masses = letter_masses(first_token(answer), AB)
        if masses is None or sum(masses) < MASS:
            return None
        return 0.5 if masses[0] == masses[1] else float(masses[0] > masses[1])
    verdict = verdict_in(content_of(answer) or "", AB, was_cut(answer))
    return None if verdict is None else {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict]


def connect(model: str, server: Server, workers: int = 8, most_tokens: int | None = None) -> LLMJudge:
    """A judge that has answered a first question.

    Raises StagealignError if no usable answer comes.
    """
    judge = LLMJudge(model, server, workers, most_tokens)
    try:
        judge.check()
    except BaseException:
        judge.close()
        raise
    return judge
