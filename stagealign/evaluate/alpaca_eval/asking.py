"""A served judge: the official one, or any model behind an OpenAI-compatible server, within a spending limit.

Requests are sent by the project's own client; their content is the official annotator's.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from stagealign.base.asking import Asking
from stagealign.base.chat import ChatAnswer, Choice, content_of, tokens_of, was_cut, with_usage_of
from stagealign.base.errors import StagealignError
from stagealign.base.server import FIRST_ATTEMPTS, RETRIED, RequestFailed, Server
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer, Settled
from stagealign.evaluate.alpaca_eval.official import Official, Question, letters_of
from stagealign.evaluate.alpaca_eval.rows import BattleItem
from stagealign.grid.preferences import GOLDS
from stagealign.grid.prices import TokenPrice
from stagealign.scoring.served_weights import weights_behind
from stagealign.scoring.verdict_text import CERTAIN, MM, verdict_in
from stagealign.store.artifact import Identity

OFFICIAL_URL = "https://api.openai.com/v1"
CHARS_PER_TOKEN = 4.0
"""Characters per token of English text; used only for estimates, as costs follow the server's count."""
FRAME_TOKENS = 16
"""Most tokens of the chat format around the messages of a question."""
FATAL = {401, 402, 403, 404}
"""Statuses that every question would get: key, account or model is wrong."""
Keep = Callable[[Question, JudgeAnswer], None]


OFFICIAL_JUDGE = GOLDS["alpaca_eval"].judge
PRICES = {OFFICIAL_JUDGE.model: OFFICIAL_JUDGE.price} if OFFICIAL_JUDGE else {}
"""Known prices, by model."""


@dataclass(frozen=True)
class Terms:
    """Price, limit and concurrency of the questions; not part of identity."""

    price: TokenPrice | None = None
    """Price of a token; None if unknown."""
    spend: float | None = None
    """Most USD that this run may cost; None for no limit."""
    workers: int = 8
    """Number of concurrent requests."""


STYLES: Mapping[str, Mapping[str, object]] = {
    "logprobs": {},
    "text": {"temperature": 0, "max_tokens": 8},
    "reasoned": {"temperature": 0, "max_tokens": 1024},
}
"""Request settings, best first: `logprobs` has the official settings, the others are for a judge without log-probs, or
whose first token is mostly no letter. An answer of `text` that was cut is asked for again as `reasoned`.
"""


class ServedJudge:
    """Judges questions over the network; every answer must name the same model."""

    def __init__(self, kind: str, model: str, server: Server, official: Official, terms: Terms = Terms()):
        """`kind`: `official` or `judge`; `model`: name of the model in requests."""
        self.kind, self.model, self.server, self.official, self.terms = kind, model, server, official, terms
        self.style = "logprobs"
        self.expected: str | None = None
        """Version that every answer must name; None if the first answer decides."""
        self.told = False
        """True once a first answer has decided the version, which may be None."""
        self.named: str | None = None
        """Version in the answer to `check`."""
        self.weights: str | None = None
        """What tells the model of a local server from another of its name, after `check`; None for a remote one."""
        self.reached = False
        """True once the server has answered; until then, questions are asked one at a time with few attempts."""
        self.spent = 0.0
        """USD of this run by the server's count; estimated for answers that broke off, as they may be billed."""

    @property
    def price(self) -> TokenPrice | None:
        """Price of a token; None if unknown."""
        return self.terms.price

    @property
    def identity(self) -> Identity:
        """Values that identify a kept answer; the URL of the server is not one of them."""
        return self.identity_as(self.style)

    def identity_as(self, style: str) -> Identity:
        """Identity of the judge with another style."""
        known = {} if self.weights is None else {"weights": self.weights}
        return {
            "kind": self.kind,
            "version": 1 if self.kind == "official" else 2,
            **known,
            "model": self.model,
            "style": style,
            "settings": self._settings_as(style),
            **self.official.identity,
        }

    @property
    def settings(self) -> Mapping[str, object]:
        """Fields of a request besides model and messages."""
        return self._settings_as(self.style)

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer."""
        most = self.settings["max_tokens"]
        assert isinstance(most, int)
        return most

    def _settings_as(self, style: str) -> Mapping[str, object]:
        return STYLES[style] or self.official.settings

    def check(self) -> None:
        """Finds the style of this server's model, with at most one small question per style.

        Raises StagealignError if no style gives an answer.
        """
        (question,) = self.official.questions([BattleItem(0, "Say yes.", "Yes.", "No.")])
        refused = said = ""
        for style in STYLES:
            self.style = style
            try:
                answer = self._read(question, self._call(question, attempts=FIRST_ATTEMPTS))
            except RequestFailed as error:
                refused = str(error)
                if error.status not in (400, 422):  # the server does not know a setting
                    break
                continue
            self.spent += answer.cost or 0.0
            self.reached = True
            if answer.preference is not None and not answer.little_mass:
                self.named, self.weights = answer.served, weights_behind(self.server, self.model)
                return
            said = answer.failed or f"has {answer.letters:.1%} of its next token on 'm' and 'M'"
        what = f"judge {self.model!r} at {self.server.url}"
        if said:
            raise StagealignError(f"{what}: {said}; name a judge that answers with m or M")
        raise StagealignError(
            f"{what}: {refused}; check that the server runs and serves this model, and that the URL ends where its API "
            "starts (mostly /v1)"
        )

    def estimate(self, questions: Sequence[Question]) -> tuple[int, float | None]:
        """Estimated tokens and USD of these questions; USD is None if no price is known."""
        tokens = round(sum(self._tokens(question) for question in questions))
        answers = len(questions) * self.answer_tokens
        return tokens + answers, None if self.price is None else self.price.of(tokens, answers)

    def ask(self, questions: Sequence[Question], keep: Keep) -> str | None:
        """Asks the questions and passes each answer to `keep` as it arrives.

        Returns the reason why some questions were not asked; None if all were. Raises StagealignError for a failure
        that the next question would also meet: a refused key, another version, failures in a row. Answers until then,
        and those of running requests, are kept, also after an interrupt.
        """
        asking: Asking[Question, ChatAnswer, Settled] = Asking(
            requests=self._requests,
            answer=partial(self._settled, keep=keep),
            failed=lambda settled: settled.answer.failed,
            error=self._stopped,
            workers=self.terms.workers,
            allowed=lambda question, under_way: (
                (self.reached or not under_way) and self._affordable([question, *under_way])
            ),
            name="judge",
        )
        asked = 0
        with closing(asking.as_completed(questions)) as answers:
            for settled in answers:
                asked += 1
                self._check(settled)
        if asked < len(questions) and self.terms.spend == 0:
            return "--spend 0 only shows the cost"
        if asked < len(questions):
            return f"the next question could pass the limit of ${self.terms.spend:g} (spent: ${self.spent:.2f})"
        return None

    def close(self) -> None:
        """Closes the connections to the server."""
        self.server.close()

    def _affordable(self, questions: Sequence[Question]) -> bool:
        """True if the limit holds even with one token per byte of these questions, the most of any tokenizer."""
        if self.terms.spend is None or self.price is None:
            return True
        if self.terms.spend == 0:  # shows the cost only, even for a free judge
            return False
        tokens = sum(question.bytes + FRAME_TOKENS for question in questions)
        return self.spent + self.price.of(tokens, len(questions) * self.answer_tokens) <= self.terms.spend

    def _tokens(self, question: Question) -> float:
        return question.chars / CHARS_PER_TOKEN + FRAME_TOKENS / 2

    def _requests(self, question: Question) -> list[Callable[[threading.Event], ChatAnswer]]:
        """One request, with few attempts until the server has answered."""
        attempts = None if self.reached else FIRST_ATTEMPTS
        return [lambda over: self._call(question, over, attempts)]

    def _call(self, question: Question, stop: threading.Event | None = None, attempts: int | None = None) -> ChatAnswer:
        """Body of the server's answer. Raises RequestFailed."""
        if not question.messages:
            raise RequestFailed("the official prompt cannot carry these texts", status=0)
        body = self.server.chat(self.model, question.messages, self.settings, stop, attempts)
        if self.style == "text" and was_cut(body) and self._first(body["choices"][0]) is None:
            fuller = self.server.chat(self.model, question.messages, STYLES["reasoned"], stop, attempts)
            return with_usage_of(fuller, body)
        return body

    def _read(self, question: Question, body: ChatAnswer) -> JudgeAnswer:
        """The judge's answer in a response body. Not thread-safe, as the package's parser is not."""
        choice = body["choices"][0]
        prompt, completion = (tokens_of(body, name) for name in ("prompt_tokens", "completion_tokens"))
        first, failed = self._first(choice), None
        letters = letters_of(choice) if self.style == "logprobs" else None
        if letters is not None and not 0 <= letters <= CERTAIN:
            first, failed, letters = None, "gave log-probabilities that are none", None
        if first is None and failed is None:
            failed = f"answered {self.server.said(content_of(body) or '')!r}, neither 'm' nor 'M'"
        return JudgeAnswer(
            preference=None if first is None else question.preference(first),
            failed=failed,
            served=self.server.name_in(body),
            first=first,
            letters=letters,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=self._cost(question, prompt, completion),
        )

    def _cost(self, question: Question, prompt: int, completion: int) -> float | None:
        """USD by the server's count of tokens, or estimated if it gives none."""
        if self.price is None or not prompt:
            return self.estimate([question])[1]
        return self.price.of(prompt, completion)

    def _first(self, choice: Choice) -> float | None:
        if self.style == "logprobs":
            return self.official.first_preferred(choice)
        content = choice["message"].get("content")
        verdict = verdict_in(content, MM, choice.get("finish_reason") == "length") if isinstance(content, str) else None
        return None if verdict is None else {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict]

    def _settled(self, question: Question, parts: Sequence[ChatAnswer | RequestFailed], keep: Keep) -> Settled:
        """Counts and keeps the answer to a question."""
        (part,) = parts
        fatal = False
        if isinstance(part, RequestFailed):
            answer, fatal = JudgeAnswer(failed=str(part)), self._is_fatal(part)
            if part.status is None and self.price is not None:  # sent but not answered, so it may be billed
                self.spent += self.estimate([question])[1] or 0.0
        else:
            answer = self._read(question, part)
            self.reached = True
            self.spent += answer.cost or 0.0
        keep(question, answer)
        return Settled(answer, fatal)

    def _is_fatal(self, error: RequestFailed) -> bool:
        """True if the next question would also fail; sets `reached` if the server has answered."""
        gone = not error.answered and (error.status is None or error.status in RETRIED)
        fatal = error.status in FATAL or (gone and not self.reached)
        self.reached |= not gone and error.status != 0
        return fatal

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"judge {self.model!r} at {self.server.url}: {reason}; what was answered is kept; solve this and run the "
            "same command again"
        )

    def _check(self, settled: Settled) -> None:
        """Raises StagealignError for a fatal failure, and for an answer by another version than expected."""
        answer = settled.answer
        if settled.fatal:
            raise self._stopped(str(answer.failed))
        if answer.preference is None:
            return
        if self.expected is None and not self.told:
            self.expected = answer.served
        self.told = True
        if answer.served != self.expected:
            raise StagealignError(
                f"judge {self.model!r}: answers of {self.expected!r} are kept, and the server now names "
                f"{answer.served!r}; verdicts of two judges are never mixed: `--served {answer.served}` asks for all "
                "of that one"
            )
