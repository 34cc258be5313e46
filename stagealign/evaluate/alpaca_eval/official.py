"""AlpacaEval's own annotator: its prompt, random order, settings and parser.

Its `evaluate` and its caches are not used: they write files into the installed package, load a data set by a script
that `datasets` no longer runs, and read the hub. Importing `alpaca_eval` (extra `eval`) reads keys from the
environment into module constants, sets the root logger's level, loads a `.env` file and warns. This module undoes
these effects and hides all keys from it. `asking` sends the requests; tests check that they equal the package's own,
and that a run leaves the package's folder unchanged.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import exp, inf, isfinite
from pathlib import Path
from typing import Any

from stagealign.base.chat import Choice
from stagealign.base.errors import CannotRun
from stagealign.base.identity import fingerprint
from stagealign.evaluate.alpaca_eval.rows import BattleItem
from stagealign.store.artifact import Identity

NAME = "weighted_alpaca_eval_gpt4_turbo"
MARKS = ("<|im_start|>", "<|im_end|>")
"""Marks at which the package splits a prompt into messages."""
PRIVATE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|IS_ALPACA_EVAL_2")
"""Names of environment variables that are hidden from the package."""


@dataclass(frozen=True)
class Question:
    """Question to a judge about one prompt."""

    item: BattleItem
    messages: tuple[Mapping[str, str], ...]
    """Messages of the request; empty if the official prompt cannot hold the texts."""
    switched: bool
    """True if the model's completion is shown first, as "m"."""
    garbled: bool = False
    """True if a text contains marks or placeholders of the official prompt, which the package takes for its own."""

    @property
    def chars(self) -> int:
        return sum(len(message["content"]) for message in self.messages)

    @property
    def bytes(self) -> int:
        return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in self.messages)

    def preference(self, first: float) -> float:
        """Preference from 1 (baseline) to 2 (model), given the probability that the text shown first is preferred."""
        return 1 + first if self.switched else 2 - first


class Official:
    """The annotator `weighted_alpaca_eval_gpt4_turbo` of the installed package."""

    def __init__(self, annotator: Any, package: Any, version: str):
        (self._single,) = annotator.annotators.values()
        self._package = package
        self.version = version
        settings = dict(self._single.completions_kwargs)
        self.model: str = settings.pop("model_name")
        self.settings: Mapping[str, object] = {**settings, "top_p": 1.0}  # the package's decoder adds top_p
        self.template: str = self._single.prompt_template

    @property
    def identity(self) -> Identity:
        """Values that can change a question; part of the judge's identity."""
        return {"annotator": NAME, "template": fingerprint(self.template), "seed": self._single.seed}

    def questions(self, items: Sequence[BattleItem]) -> list[Question]:
        """The official question about each prompt, in order."""
        import pandas as pd

        if not items:
            return []
        rows = [{"instruction": item.prompt, "output_1": item.baseline, "output_2": item.model or ""} for item in items]
        with quiet():
            table = pd.DataFrame(rows)
            for processor in self._single.processors:
                table = processor.preprocess(table)
            prompts, _ = self._package.utils.make_prompts(table, template=self.template)
        switched = [bool(flag) for flag in table["is_switched_outputs"]]
        return [self._question(*shown) for shown in zip(items, prompts, switched, strict=True)]

    def first_preferred(self, choice: Choice) -> float | None:
        """Probability that the completion shown first is preferred, from the first choice of a chat answer.

        None if the parser finds neither "m" nor "M" in it.
        """
        try:
            with quiet():
                (value,) = self._single.fn_completion_parser(choice)
        except (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None
        return 2 - float(value) if isfinite(value) else None

    def _question(self, item: BattleItem, prompt: str, switched: bool) -> Question:
        try:
            messages = tuple(self._package.utils.prompt_to_chatml(prompt.strip()))
        except (AssertionError, IndexError):
            messages = ()
        shown = (item.model or "", item.baseline) if switched else (item.baseline, item.model or "")
        texts = dict(zip(("instruction", "output_1", "output_2"), (item.prompt, *shown), strict=True))
        whole = re.sub(r"\{(instruction|output_1|output_2)\}", lambda match: texts[match[1]], self.template)
        marked = any(mark in text for mark in MARKS for text in texts.values())
        return Question(item, messages, switched, marked or whole != prompt)


def letters_of(choice: Choice) -> float | None:
    """Probability of "m" and "M" together in the first token of an answer; None if it has no log-probs."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        probability = float(sum(exp(token["logprob"]) for token in top if token["token"] in ("m", "M")))
    except OverflowError:
        return inf
    except (KeyError, IndexError, TypeError):
        return None
    return probability


@cache
def load() -> Official:
    """Loads the official annotator. Raises CannotRun if the extra `eval` is not installed."""
    with contained():
        try:
            import alpaca_eval
        except ImportError as error:
            raise CannotRun(
                f"AlpacaEval needs {error.name!r}, which is not installed; `pip install 'stagealign[eval,judge]'`"
            ) from error
        annotator = alpaca_eval.annotators.PairwiseAnnotator(
            annotators_config=Path(alpaca_eval.constants.EVALUATORS_CONFIG_DIR) / NAME,
            caching_path=None,
            is_avoid_reannotations=False,
        )
        return Official(annotator, alpaca_eval, str(alpaca_eval.__version__))


@contextmanager
def contained() -> Iterator[None]:
    """Context that undoes the effects of importing the package on this process and hides secrets from it."""
    before, wrote = dict(os.environ), sys.dont_write_bytecode
    for name in filter(PRIVATE.search, before):
        del os.environ[name]
    os.environ.setdefault("LOGNAME", "nobody")  # it needs a user name, and a container may have none
    sys.dont_write_bytecode = True
    try:
        with quiet():
            yield
    finally:
        sys.dont_write_bytecode = wrote
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Context that suppresses the package's warnings and its log lines, which contain prompts and answers."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.handlers[:] = [logging.NullHandler()]  # without one, logging would install one for good
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
