"""What a judge answered, kept in a JSON-lines file that only grows: nothing that was answered is asked again."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stagealign.base.identity import fingerprint
from stagealign.base.shapes import NUMBER, TEXT, WHOLE, Or, misfit
from stagealign.evaluate.alpaca_eval.rows import Item
from stagealign.store.checksums import SEAL, sealed, whole
from stagealign.store.files import append


@dataclass(frozen=True)
class Answer:
    """A judge's answer to one question, or why there is none."""

    preference: float | None = None
    """1: the baseline is preferred ... 2: the model; None where there is none."""
    failed: str | None = None
    served: str | None = None
    """The judge's version by its own word: the model's name in the server's answer, or the weights."""
    first: float | None = None
    """Probability that the completion shown first is preferred."""
    letters: float | None = None
    """Probability of "m" and "M" together; None where the judge tells only its text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """USD; None where no price is known."""


SHAPE = {
    **{f"{name}?": Or(NUMBER) for name in ("preference", "first", "letters", "cost")},
    **{f"{name}?": Or(TEXT) for name in ("failed", "served")},
    **{f"{name}?": WHOLE for name in ("prompt_tokens", "completion_tokens")},
}


@dataclass
class Spent:
    """Tokens and USD of answers, those that could not be used included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def add(self, answer: Answer) -> None:
        """Counts one more answer."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        if answer.cost is not None:
            self.cost = (self.cost or 0.0) + answer.cost


def key_of(judge: Mapping[str, Any], item: Item) -> str:
    """What an answer belongs to: the judge, the prompt and both texts."""
    return fingerprint({"judge": dict(judge), "prompt": item.prompt, "baseline": item.baseline, "model": item.model})


@dataclass
class Answers:
    """Answers by key; each is on disk, in one write, before anything is made of it."""

    path: Path | None
    kept: dict[str, dict[str | None, Answer]] = field(default_factory=lambda: defaultdict(dict))
    """By key and served version."""
    bills: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    """By key, all that was paid for."""
    damaged: int = 0
    """Lines that are not as they were written, such as one that a crash cut: what they held is asked again."""

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            row: Any = whole(line)
            try:
                if row is None:
                    raise ValueError
                row.pop(SEAL, None)
                key = row.pop("key")
                if misfit(row, SHAPE):
                    raise ValueError
                self._take(str(key), Answer(**row))
            except (ValueError, TypeError, KeyError):
                self.damaged += 1

    def get(self, key: str) -> Mapping[str | None, Answer]:
        """Answers to a question, by served version."""
        return self.kept.get(key, {})

    def add(self, key: str, answer: Answer) -> None:
        """Keeps an answer; of those that failed, only what they cost."""
        if answer.preference is None and not answer.prompt_tokens:
            return
        self._take(key, answer)
        if self.path is None:
            return
        line = json.dumps(sealed({"key": key, **asdict(answer)}), ensure_ascii=True, allow_nan=False)
        append(self.path, line + "\n")

    def _take(self, key: str, answer: Answer) -> None:
        self.bills[key].append(answer)
        if answer.preference is not None:
            self.kept[key][answer.served] = answer
