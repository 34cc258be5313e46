"""Answers of a judge, kept on disk so that no question is asked twice."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stagealign.base.identity import fingerprint
from stagealign.base.shapes import NUMBER, TEXT, WHOLE, Or, misfit
from stagealign.evaluate.alpaca_eval.rows import BattleItem
from stagealign.scoring.verdict_text import MASS
from stagealign.store.artifact import Identity
from stagealign.store.kept import Row, RowFile


@dataclass(frozen=True)
class JudgeAnswer:
    """A judge's answer to one question, or the reason why it has none."""

    preference: float | None = None
    """From 1 (the baseline is preferred) to 2 (the model is); None if the judge gave none."""
    failed: str | None = None
    """Reason why there is no preference."""
    served: str | None = None
    """Version of the judge: the name of the model in the server's answer, or the weights."""
    first: float | None = None
    """Probability that the completion shown first is preferred."""
    letters: float | None = None
    """Probability of "m" and "M" together; None if the judge gives only text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """USD; None if no price is known."""

    @property
    def little_mass(self) -> bool:
        """True if the preference rests on two letters that are mostly not the judge's answer."""
        return self.preference is not None and self.letters is not None and self.letters < MASS


@dataclass(frozen=True)
class Settled:
    """An answer that has been counted and kept."""

    answer: JudgeAnswer
    fatal: bool
    """True if the next question would also fail."""


SHAPE = {
    **{f"{name}?": Or(NUMBER) for name in ("preference", "first", "letters", "cost")},
    **{f"{name}?": Or(TEXT) for name in ("failed", "served")},
    **{f"{name}?": WHOLE for name in ("prompt_tokens", "completion_tokens")},
}


@dataclass
class Bill:
    """Tokens and USD of several answers, including unusable ones."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def add(self, answer: JudgeAnswer) -> None:
        """Adds the tokens and cost of one answer."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        if answer.cost is not None:
            self.cost = (self.cost or 0.0) + answer.cost


def key_of(judge: Identity, item: BattleItem) -> str:
    """Key of an answer: a fingerprint of the judge, the prompt and both texts."""
    return fingerprint({"judge": dict(judge), "prompt": item.prompt, "baseline": item.baseline, "model": item.model})


class KeptAnswers:
    """Answers of one judge by question, each written to disk before it is used."""

    def __init__(self, path: Path | None):
        """Reads answers that earlier calls kept at `path`; with None, answers stay in memory."""
        self.kept: dict[str, dict[str | None, JudgeAnswer]] = defaultdict(dict)
        """Usable answers by key and served version."""
        self.bills: dict[str, list[JudgeAnswer]] = defaultdict(list)
        """All answers that were paid for, by key."""
        self._file = None if path is None else RowFile(path, _is_answer)
        for _, row in self._file.read() if self._file else ():
            key = row.pop("key")
            self._take(key, JudgeAnswer(**row))

    @property
    def damaged(self) -> int:
        """Number of corrupt lines, such as one that a crash cut; their questions are asked again."""
        return self._file.damaged if self._file else 0

    def get(self, key: str) -> Mapping[str | None, JudgeAnswer]:
        """Answers to a question, by served version."""
        return self.kept.get(key, {})

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Keeps an answer; a failed one is kept if it was billed. Raises CannotRun if it cannot be written to disk."""
        if answer.preference is None and not answer.prompt_tokens:
            return
        self._take(key, answer)
        if self._file:
            self._file.add({"key": key, **asdict(answer)})

    def _take(self, key: str, answer: JudgeAnswer) -> None:
        self.bills[key].append(answer)
        if answer.preference is not None:
            self.kept[key][answer.served] = answer


def _is_answer(row: Row) -> bool:
    return row.keys() - {"key"} <= JudgeAnswer.__dataclass_fields__.keys() and misfit(row, SHAPE) is None
