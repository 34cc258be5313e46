"""A served judge: the official one, or any model behind an OpenAI-compatible server, within a spending limit.

Requests go through the project's own client; what they hold is the official annotator's.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import exp, inf

from stagealign.base.asking import Asking
from stagealign.base.chat import ChatAnswer, Choice, content_of, tokens_of
from stagealign.base.errors import StagealignError
from stagealign.base.server import FIRST_ATTEMPTS, RETRIED, RequestFailed, Server
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer
from stagealign.evaluate.alpaca_eval.official import Official, Question
from stagealign.evaluate.alpaca_eval.rows import BattleItem
from stagealign.grid.preferences import GOLDS
from stagealign.grid.prices import TokenPrice
from stagealign.store.artifact import Identity

OFFICIAL_URL = "https://api.openai.com/v1"
CHARS_PER_TOKEN = 4.0
"""Of English text; for what is shown beforehand only, the cost itself follows the server's own count."""
FRAME_TOKENS = 16
"""Tokens around the messages of a question, at most."""
CERTAIN = 1.01
"""Most that probabilities add up to, with the server's rounding."""
FATAL = {401, 402, 403, 404}
"""Statuses that the next question would get too: key, account or model."""
Keep = Callable[[Question, JudgeAnswer], None]


OFFICIAL_JUDGE = GOLDS["alpaca_eval"].judge
PRICES = {OFFICIAL_JUDGE.model: OFFICIAL_JUDGE.price} if OFFICIAL_JUDGE else {}
"""Known prices, by model."""


@dataclass(frozen=True)
class Terms:
    """What asking may cost and take. None of it is identity."""

    price: TokenPrice | None = None
    """None if it is not known."""
    spend: float | None = None
    """USD that this run may cost; None: no limit."""
    workers: int = 8
    """Requests under way at a time."""


STYLES: Mapping[str, Mapping[str, object]] = {"logprobs": {}, "text": {"temperature": 0, "max_tokens": 8}}
"""Ways to ask, best first; `logprobs` is with the official settings, `text` for servers without log-probs."""


class ServedJudge:
    """Judges questions over the network; every answer must name the same model."""

    def __init__(self, kind: str, model: str, server: Server, official: Official, terms: Terms = Terms()):
        """`kind` is `official` or `judge`; `model` is the name by which the server is asked."""
        self.kind, self.model, self.server, self.official, self.terms = kind, model, server, official, terms
        self.style = "logprobs"
        self.expected: str | None = None
        """Version that every answer must name; None where the first one tells."""
        self.told = False
        """Whether a first answer has told the version, which may be that it has none."""
        self.named: str | None = None
        """Version that answered `check`."""
        self.reached = False
        """Whether the server has answered anything: until then it is asked one question alone, and not for long."""
        self.spent = 0.0
        """USD of this run: by the server's count, and by the estimate where an answer broke off and may be billed."""

    @property
    def price(self) -> TokenPrice | None:
        """None if it is not known."""
        return self.terms.price

    @property
    def identity(self) -> Identity:
        """Values that an answer is kept under; the place of the server is none of them."""
        return self.identity_as(self.style)

    def identity_as(self, style: str) -> Identity:
        """Identity of the judge if questions were asked in that style."""
        return {
            "kind": self.kind,
            "version": 1,
            "model": self.model,
            "style": style,
            "settings": self._settings_as(style),
            **self.official.identity,
        }

    @property
    def settings(self) -> Mapping[str, object]:
        """Fields of a request beside model and messages."""
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
        """Finds out with one small question, or one a style, how this server's model answers.

        Raises StagealignError where it does not answer.
        """
        (question,) = self.official.questions([BattleItem(0, "Say yes.", "Yes.", "No.")])
        for style in STYLES:
            self.style = style
            try:
                answer = self._read(question, self._call(question, attempts=FIRST_ATTEMPTS))
            except RequestFailed as error:
                reason = str(error)
                if error.status not in (400, 422):  # the server does not know a setting
                    break
                continue
            self.spent += answer.cost or 0.0
            self.reached = True
            if answer.preference is not None:
                self.named = answer.served
                return
            reason = str(answer.failed)
        raise StagealignError(
            f"judge {self.model!r} at {self.server.url}: {reason}; see that the server runs, serves this model and "
            "that the URL ends where its API starts (mostly /v1)"
        )

    def estimate(self, questions: Sequence[Question]) -> tuple[int, float | None]:
        """Tokens and USD that asking will take, about; no USD if no price is known."""
        tokens = round(sum(self._tokens(one) for one in questions))
        answers = len(questions) * self.answer_tokens
        return tokens + answers, None if self.price is None else self.price.of(tokens, answers)

    def ask(self, questions: Sequence[Question], keep: Keep) -> str | None:
        """Asks the questions and passes each answer to `keep` at once, in the order they come.

        Returns the reason why not all was asked; None if all was. Raises StagealignError for what the next question
        would meet too (a refused key, another version, failures in a row); what was answered up to there, or is under
        way, is kept, also after an interrupt.
        """
        asking: Asking[Question, ChatAnswer, _Settled] = Asking(
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
        """Whether the limit holds even if these questions had a token a byte, which no tokenizer exceeds."""
        if self.terms.spend is None or self.price is None:
            return True
        if self.terms.spend == 0:  # only shows the cost, also of a judge that is free
            return False
        tokens = sum(one.bytes + FRAME_TOKENS for one in questions)
        return self.spent + self.price.of(tokens, len(questions) * self.answer_tokens) <= self.terms.spend

    def _tokens(self, question: Question) -> float:
        return question.chars / CHARS_PER_TOKEN + FRAME_TOKENS / 2

    def _requests(self, question: Question) -> list[Callable[[threading.Event], ChatAnswer]]:
        """One request; until the server has answered anything, not for long."""
        attempts = None if self.reached else FIRST_ATTEMPTS
        return [lambda over: self._call(question, over, attempts)]

    def _call(self, question: Question, stop: threading.Event | None = None, attempts: int | None = None) -> ChatAnswer:
        """Body of the server's answer. Raises RequestFailed."""
        if not question.messages:
            raise RequestFailed("the official prompt cannot carry these texts", status=0)
        return self.server.chat(self.model, question.messages, self.settings, stop, attempts)

    def _read(self, question: Question, body: ChatAnswer) -> JudgeAnswer:
        """Answer in the body of a request. Not for threads, as the package's parser is not."""
        choice = body["choices"][0]
        prompt, completion = (tokens_of(body, one) for one in ("prompt_tokens", "completion_tokens"))
        first, failed = self._first(choice), None
        letters = _letters(choice) if self.style == "logprobs" else None
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
        """USD by the server's count, or about if it gives none."""
        if self.price is None or not prompt:
            return self.estimate([question])[1]
        return self.price.of(prompt, completion)

    def _first(self, choice: Choice) -> float | None:
        if self.style == "logprobs":
            return self.official.first_preferred(choice)
        content = choice["message"].get("content")
        found = re.fullmatch(r"\W*([mM])\W*", content) if isinstance(content, str) else None
        return None if found is None else float(found[1] == "m")

    def _settled(self, question: Question, parts: Sequence[ChatAnswer | RequestFailed], keep: Keep) -> "_Settled":
        """The answer, counted and kept."""
        (part,) = parts
        fatal = False
        if isinstance(part, RequestFailed):
            answer, fatal = JudgeAnswer(failed=str(part)), self._is_fatal(part)
            if part.status is None and self.price is not None:  # sent, not answered: it may be billed
                self.spent += self.estimate([question])[1] or 0.0
        else:
            answer = self._read(question, part)
            self.reached = True
            self.spent += answer.cost or 0.0
        keep(question, answer)
        return _Settled(answer, fatal)

    def _is_fatal(self, error: RequestFailed) -> bool:
        """Whether the next question would fail too; also takes note of whether the server has answered anything."""
        gone = not error.answered and (error.status is None or error.status in RETRIED)
        fatal = error.status in FATAL or (gone and not self.reached)
        self.reached |= not gone and error.status != 0
        return fatal

    def _stopped(self, reason: str) -> StagealignError:
        return StagealignError(
            f"judge {self.model!r} at {self.server.url}: {reason}; what was answered is kept, run the same "
            "command again when that is solved"
        )

    def _check(self, settled: "_Settled") -> None:
        """Raises StagealignError for a fatal failure, and for an answer of another version than expected."""
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


@dataclass(frozen=True)
class _Settled:
    """An answer that has been counted and kept."""

    answer: JudgeAnswer
    fatal: bool
    """Whether the next question would fail too."""


def _letters(choice: Choice) -> float | None:
    """Probability of "m" and "M" together, of an answer that the parser has read."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        sure = float(sum(exp(one["logprob"]) for one in top if one["token"] in ("m", "M")))
    except OverflowError:
        return inf
    except (KeyError, IndexError, TypeError):
        return None
    return sure
