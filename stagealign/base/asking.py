"""Concurrent questions to one server, with answers in order or as they arrive; ends if the server stops answering."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stagealign.base.errors import StagealignError
from stagealign.base.server import RequestFailed

GIVE_UP = 10
"""Failures in a row after which a server counts as gone."""
QuestionT = TypeVar("QuestionT")
PartT = TypeVar("PartT")
AnswerT = TypeVar("AnswerT")


@dataclass(eq=False)
class UnderWay(Generic[QuestionT, PartT]):
    """A question whose requests have been handed to the threads."""

    question: QuestionT
    over: threading.Event
    """Set when the answer is no longer needed: a request failed, or the asking ended."""
    requests: list["Future[PartT]"] = field(default_factory=list)

    def parts(self) -> list[PartT | RequestFailed]:
        """Outcome of each request, in order; waits for all of them. Raises any error other than RequestFailed."""
        outcomes: list[PartT | RequestFailed] = []
        for request in self.requests:
            try:
                outcomes.append(request.result())
            except RequestFailed as error:
                outcomes.append(error)
        return outcomes


@dataclass(frozen=True)
class Asking(Generic[QuestionT, PartT, AnswerT]):
    """Rules for questions of one kind: the requests of each, its answer, and when to stop."""

    requests: Callable[[QuestionT], Sequence[Callable[[threading.Event], PartT]]]
    """Requests of one question, run in threads; each gets the question's `over`."""
    answer: Callable[[QuestionT, Sequence[PartT | RequestFailed]], AnswerT]
    """Answer to a question from the outcome of each of its requests; run in the caller's thread."""
    failed: Callable[[AnswerT], str | None]
    """Reason why an answer cannot be used; None if it can."""
    error: Callable[[str], StagealignError]
    """Error that is raised after `give_up` failures in a row, from the reason of the last."""
    workers: int
    """Requests sent at a time."""
    allowed: Callable[[QuestionT, Sequence[QuestionT]], bool] = lambda question, under_way: True
    """Whether a question may be asked beside those under way. Asking ends if it may not and none is under way."""

    give_up: int = GIVE_UP
    """Failures in a row after which the server counts as gone."""
    name: str = "asking"
    """Prefix of the names of the threads."""

    def in_order(self, questions: Sequence[QuestionT]) -> Generator[AnswerT, None, None]:
        """Answers in the order of the questions. An interrupt ends the asking at once.

        Raises `error` after `give_up` failures in a row, and whatever `answer` or a request raises.
        """
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix=self.name)
        waiting: list[UnderWay[QuestionT, PartT]] = []
        try:
            yield from self._answers(questions, waiting, pool, self.workers + 1, lambda: waiting[:1])
        finally:
            for pending in waiting:
                pending.over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def as_completed(self, questions: Sequence[QuestionT]) -> Generator[AnswerT, None, None]:
        """Answers in the order in which they come.

        At the end, and after an interrupt, it waits for the requests under way and passes them to `answer`, so that no
        paid request is lost. Close the iterator to leave it early. Raises as `in_order` does.
        """
        waiting: list[UnderWay[QuestionT, PartT]] = []
        with ThreadPoolExecutor(self.workers, thread_name_prefix=self.name) as pool:
            try:
                yield from self._answers(questions, waiting, pool, self.workers, lambda: _ended(waiting))
            finally:
                for pending in waiting:
                    pending.over.set()
                for pending in waiting:
                    self.answer(pending.question, pending.parts())

    def _answers(
        self,
        questions: Sequence[QuestionT],
        waiting: list[UnderWay[QuestionT, PartT]],
        pool: ThreadPoolExecutor,
        most: int,
        ready: Callable[[], list[UnderWay[QuestionT, PartT]]],
    ) -> Generator[AnswerT, None, None]:
        """Answers to the questions that `ready` returns; keeps at most `most` of them in `waiting`."""
        place = streak = 0
        while True:
            while place < len(questions) and len(waiting) < most:
                if not self.allowed(questions[place], [pending.question for pending in waiting]):
                    break
                waiting.append(self._sent(questions[place], pool))
                place += 1
            if not waiting:
                return
            for pending in ready():
                parts = pending.parts()
                waiting.remove(pending)
                answer = self.answer(pending.question, parts)
                reason = self.failed(answer)
                streak = 0 if reason is None else streak + 1
                if reason is not None and streak == self.give_up:
                    raise self.error(reason)
                yield answer

    def _sent(self, question: QuestionT, pool: ThreadPoolExecutor) -> UnderWay[QuestionT, PartT]:
        sent = UnderWay[QuestionT, PartT](question, threading.Event())
        sent.requests += [pool.submit(_request, request, sent.over) for request in self.requests(question)]
        return sent


def _request(request: Callable[[threading.Event], PartT], over: threading.Event) -> PartT:
    """Sends one request. A failure sets `over`, as the question's other requests are then useless."""
    try:
        return request(over)
    except BaseException:
        over.set()
        raise


def _ended(waiting: Sequence[UnderWay[QuestionT, PartT]]) -> list[UnderWay[QuestionT, PartT]]:
    """Questions whose requests have all ended; waits until there is one."""
    while True:
        ended = [pending for pending in waiting if all(request.done() for request in pending.requests)]
        if ended:
            return ended
        requests = [request for pending in waiting for request in pending.requests]
        wait([request for request in requests if not request.done()], None, FIRST_COMPLETED)
