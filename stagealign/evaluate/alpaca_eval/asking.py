"""A served judge: the official one, or any model behind an OpenAI-compatible server, within a spending limit.

Requests go through the project's own client; what they hold is the official annotator's.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import exp, inf
from typing import Any

from stagealign.base.errors import StagealignError
from stagealign.base.server import FIRST_ATTEMPTS, RETRIED, RequestFailed, Server, content_of, tokens_of
from stagealign.evaluate.alpaca_eval.answers import Answer
from stagealign.evaluate.alpaca_eval.official import Official, Question
from stagealign.evaluate.alpaca_eval.rows import Item

OFFICIAL_URL = "https://api.openai.com/v1"
CHARS_PER_TOKEN = 4.0
"""Of English text; for what is shown beforehand only, the cost itself follows the server's own count."""
FRAME_TOKENS = 16
"""Tokens around the messages of a question, at most."""
GIVE_UP = 10
"""Questions that fail one after the other before the run is stopped: by then the server is gone."""
CERTAIN = 1.01
"""Most that probabilities add up to, with the server's rounding."""
FATAL = {401, 402, 403, 404}
"""Statuses that the next question would get too: key, account or model."""
Keep = Callable[[Question, Answer], None]


@dataclass(frozen=True)
class Price:
    """USD for a million tokens."""

    prompt: float
    completion: float
    source: str

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


PRICES = {
    "gpt-4-1106-preview": Price(
        10.0, 30.0, "OpenAI's price list for gpt-4-1106-preview; alpaca-eval 0.6.6 counts all tokens at $10"
    )
}
STYLES: dict[str, dict[str, Any]] = {"logprobs": {}, "text": {"temperature": 0, "max_tokens": 8}}
"""Ways to ask, best first; `logprobs` is with the official settings, `text` for servers without log-probs."""


class ServedJudge:
    """Judges questions over the network; every answer must name the same model."""

    def __init__(
        self,
        kind: str,
        model: str,
        server: Server,
        official: Official,
        price: Price | None = None,
        spend: float | None = None,
        workers: int = 8,
    ):
        """`spend`: USD that this run may cost; `workers`: requests under way at a time."""
        self.kind, self.model, self.server, self.official = kind, model, server, official
        self.price, self.spend, self.workers = price, spend, workers
        self.style = "logprobs"
        self.expected: str | None = None
        """Version that every answer must name; None where the first one tells."""
        self.told = False
        """Whether a first answer has told the version, which may be that it has none."""
        self.named: str | None = None
        """Version that `check` was answered by."""
        self.reached = False
        """Whether the server has answered anything: until then it is asked one question alone, and not for long."""
        self.spent = 0.0
        """USD of this run: by the server's count, and by the estimate where an answer broke off and may be billed."""

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer is kept under; where the judge stands is no part of it."""
        return self.identity_as(self.style)

    def identity_as(self, style: str) -> dict[str, Any]:
        """The identity, were questions asked in that style."""
        return {
            "kind": self.kind,
            "version": 1,
            "model": self.model,
            "style": style,
            "settings": self._settings_as(style),
            **self.official.identity,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What a request holds beside model and messages."""
        return self._settings_as(self.style)

    def _settings_as(self, style: str) -> dict[str, Any]:
        return STYLES[style] or self.official.settings

    def check(self) -> None:
        """Finds out with one small question, or one a style, how this server's model answers.

        Raises StagealignError where it does not answer.
        """
        (question,) = self.official.questions([Item(0, "Say yes.", "Yes.", "No.")])
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
        """Tokens and USD that asking will take, about."""
        tokens = round(sum(self._tokens(one) for one in questions))
        answers = len(questions) * self.settings["max_tokens"]
        return tokens + answers, None if self.price is None else self.price.of(tokens, answers)

    def ask(self, questions: Sequence[Question], keep: Keep) -> str | None:
        """Why not all was asked; None where it was. Each answer goes to `keep` at once, in the order they come.

        Raises StagealignError for what the next question would meet too (a refused key, another version, `GIVE_UP`
        failures in a row); what was answered up to there, or is under way, is kept, also after an interrupt.
        """
        stop, streak, place = threading.Event(), 0, 0
        waiting: dict[Future[dict[str, Any]], Question] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="judge") as pool:
            try:
                while True:
                    while place < len(questions) and len(waiting) < (self.workers if self.reached else 1):
                        if not self._affordable(questions[place], waiting.values()):
                            break
                        attempts = None if self.reached else FIRST_ATTEMPTS
                        waiting[pool.submit(self._call, questions[place], stop, attempts)] = questions[place]
                        place += 1
                    if not waiting:
                        break
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        answer, fatal = self._settled(done, waiting[done], keep)
                        del waiting[done]
                        streak = streak + 1 if answer.preference is None else 0
                        self._check(answer, fatal or streak >= GIVE_UP)
            finally:
                stop.set()
                for future in wait(waiting).done:
                    self._settled(future, waiting[future], keep)
        if place < len(questions) and self.spend == 0:
            return "--spend 0 only shows the cost"
        if place < len(questions):
            return f"the next question could pass the limit of ${self.spend:g} (spent: ${self.spent:.2f})"
        return None

    def close(self) -> None:
        """Closes the connections to the server."""
        self.server.close()

    def _affordable(self, question: Question, waiting: Any) -> bool:
        """Whether the limit holds even if this and all under way had a token a byte, which no tokenizer exceeds."""
        if self.spend is None or self.price is None:
            return True
        if self.spend == 0:  # only shows the cost, also of a judge that is free
            return False
        asked = [question, *waiting]
        tokens = sum(one.bytes + FRAME_TOKENS for one in asked)
        return self.spent + self.price.of(tokens, len(asked) * self.settings["max_tokens"]) <= self.spend

    def _tokens(self, question: Question) -> float:
        return question.chars / CHARS_PER_TOKEN + FRAME_TOKENS / 2

    def _call(
        self, question: Question, stop: threading.Event | None = None, attempts: int | None = None
    ) -> dict[str, Any]:
        """The body of the server's answer. Raises RequestFailed."""
        if not question.messages:
            raise RequestFailed("the official prompt cannot carry these texts", status=0)
        return self.server.chat(self.model, question.messages, self.settings, stop, attempts)

    def _read(self, question: Question, body: Mapping[str, Any]) -> Answer:
        """What the server's answer says; the package's parser is not for threads."""
        choice, name = body["choices"][0], body.get("model")
        prompt, completion = (tokens_of(body, one) for one in ("prompt_tokens", "completion_tokens"))
        first, failed = self._first(choice), None
        letters = _letters(choice) if self.style == "logprobs" else None
        if letters is not None and not 0 <= letters <= CERTAIN:
            first, failed, letters = None, "gave log-probabilities that are none", None
        if first is None and failed is None:
            failed = f"answered {self.server.said(content_of(body) or '')!r}, neither 'm' nor 'M'"
        return Answer(
            preference=None if first is None else question.preference(first),
            failed=failed,
            served=self.server.said(name) if isinstance(name, str) else None,
            first=first,
            letters=letters,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=self._cost(question, prompt, completion),
        )

    def _cost(self, question: Question, prompt: int, completion: int) -> float | None:
        """USD by the server's count, or about, where it gives none."""
        if self.price is None or not prompt:
            return self.estimate([question])[1]
        return self.price.of(prompt, completion)

    def _first(self, choice: Mapping[str, Any]) -> float | None:
        if self.style == "logprobs":
            return self.official.first_preferred(choice)
        content = choice["message"].get("content")
        found = re.fullmatch(r"\W*([mM])\W*", content) if isinstance(content, str) else None
        return None if found is None else float(found[1] == "m")

    def _settled(self, future: "Future[dict[str, Any]]", question: Question, keep: Keep) -> tuple[Answer, bool]:
        """The answer, counted and kept, and whether the next question would fail too."""
        fatal = False
        try:
            answer = self._read(question, future.result())
            self.reached = True
            self.spent += answer.cost or 0.0
        except RequestFailed as error:
            answer = Answer(failed=str(error))
            gone = not error.answered and (error.status is None or error.status in RETRIED)
            fatal = error.status in FATAL or (gone and not self.reached)
            self.reached |= not gone and error.status != 0
            if error.status is None and self.price is not None:  # sent, not answered: it may be billed
                self.spent += self.estimate([question])[1] or 0.0
        keep(question, answer)
        return answer, fatal

    def _check(self, answer: Answer, over: bool) -> None:
        if over and answer.preference is None:
            raise StagealignError(
                f"judge {self.model!r} at {self.server.url}: {answer.failed}; what was answered is kept, run the same "
                "command again when that is solved"
            )
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


def _letters(choice: Mapping[str, Any]) -> float | None:
    """Probability of "m" and "M" together, of an answer that the parser has read."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        sure = float(sum(exp(one["logprob"]) for one in top if one["token"] in ("m", "M")))
    except OverflowError:
        return inf
    except (KeyError, IndexError, TypeError):
        return None
    return sure
