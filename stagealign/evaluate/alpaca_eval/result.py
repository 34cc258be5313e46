"""Result of an evaluation: a record for people and reports, and the table of annotations."""

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import TypedDict

from stagealign.base.errors import BadData
from stagealign.base.words import short
from stagealign.data.formats import EXAMPLES, no_formula
from stagealign.evaluate.alpaca_eval.answers import Bill, JudgeAnswer
from stagealign.evaluate.alpaca_eval.rows import Battle, BattleItem
from stagealign.scoring.verdict_text import MASS
from stagealign.stats.statistics import Metric, mean_metric
from stagealign.store.artifact import Facts, Identity
from stagealign.store.facts import code_version, package_versions
from stagealign.store.files import write_bytes

SCHEMA = 1
FAILURES_ALLOWED = 0.01
"""Share of prompts without a preference above which a result is unreliable."""
ENDINGS = (".parquet", ".jsonl", ".csv")
UNASKED = "not asked"
REASONS = 5
"""Number of reasons for failures that are shown; the record has all."""


class AnnotationRow(TypedDict):
    """One comparison, in the format that `stagealign lc-win-rate` reads."""

    prompt_index: int
    generator: str
    preference: float | None
    """From 1 (the baseline is preferred) to 2 (the model is); None if the judge gave none."""
    baseline_chars: int
    model_chars: int
    prompt_hash: str
    failed: str | None
    preference_scale: str
    """Always `1-2`: the scale of `preference`, so that no reader has to guess it."""


@dataclass(frozen=True)
class WinRateResult:
    """One model against one baseline by one judge; every prompt of the baseline has an answer or a reason."""

    battle: Battle
    answers: Mapping[str, JudgeAnswer]
    """Answers by prompt hash."""
    judge: Identity
    spent: Bill
    """Cost of all answers of this result, including earlier calls."""
    cost_now: float | None
    """USD that this call cost; None if no price is known."""
    seconds: float
    """Duration of this call."""
    drawn: int = 0
    """Number of prompts with two equal texts, which are draws without a question, as in AlpacaEval."""
    garbled: Sequence[int] = ()
    """Each prompt_index with marks of the official prompt in its texts; the judge then reads a different prompt."""
    stopped: str | None = None
    """Reason why some questions were not asked; None if all were."""
    damaged: int = 0

    @property
    def preferences(self) -> list[float]:
        return [answer.preference for answer in self._ordered() if answer.preference is not None]

    @property
    def failed(self) -> list[tuple[BattleItem, str]]:
        """(prompt, reason) for each prompt without a preference."""
        pairs = zip(self.battle.items, self._ordered(), strict=True)
        return [(item, answer.failed or UNASKED) for item, answer in pairs if answer.preference is None]

    @property
    def metric(self) -> Metric | None:
        """Win rate over the prompts with a preference, in percent; None if there are none."""
        rates = [100 * (preference - 1) for preference in self.preferences]
        return mean_metric(rates, "percent") if rates else None

    @property
    def little_mass(self) -> list[BattleItem]:
        """Prompts whose preference rests on letters with less than half of the probability of the judge's answer."""
        return [item for item, answer in zip(self.battle.items, self._ordered(), strict=True) if answer.little_mass]

    @property
    def reliable(self) -> bool:
        most = FAILURES_ALLOWED * len(self.battle.items)
        return len(self.failed) <= most and len(self.little_mass) <= most

    @property
    def sentence(self) -> str:
        """The result in one sentence, with missing answers."""
        n, failed = len(self.battle.items), self.failed
        names = f"{self.battle.generator!r} against {self.battle.baseline!r}"
        metric = self.metric
        if metric is None:
            return f"{names}: no win rate, none of {n} prompts has a preference"
        error = "" if metric["standard_error"] is None else f" +- {metric['standard_error']:.2f}"
        text = f"{names}: win rate {metric['value']:.2f}%{error} over {n - len(failed)} of {n} prompts"
        if self.little_mass:
            text += f"; {len(self.little_mass)} by letters that are mostly not the judge's answer"
            if len(self.little_mass) > FAILURES_ALLOWED * n:
                text += f": unreliable, as these are more than {FAILURES_ALLOWED:.0%} of the prompts"
        if not failed:
            return text
        unasked = sum(reason == UNASKED for _, reason in failed)
        text += f"; {len(failed) - unasked} failed, {unasked} not asked yet" if unasked else f"; {len(failed)} failed"
        if len(failed) > FAILURES_ALLOWED * n:
            text += f": unreliable, as more than {FAILURES_ALLOWED:.0%} of the prompts have no preference"
        return text

    @property
    def first_shown_preferred(self) -> float | None:
        """Mean probability that the completion shown first wins; far from 0.5, the judge is biased by position."""
        return _mean([answer.first for answer in self._ordered() if answer.first is not None])

    @property
    def letter_probability(self) -> float | None:
        """Mean probability of "m" and "M" together; far from 1, the judge does not answer the question."""
        return _mean([answer.letters for answer in self._ordered() if answer.letters is not None])

    @property
    def details(self) -> list[str]:
        """Lines of detail under the sentence: judge, cost, failures by reason, and warnings."""
        judge = " ".join(str(self.judge[name]) for name in ("kind", "model") if name in self.judge)
        served = self.judge.get("served")
        other = served not in (None, self.judge.get("model"))
        lines = [f"judge: {judge}" + f", which names itself {served}" * other]
        first, letters = self.first_shown_preferred, self.letter_probability
        if first is not None and letters is not None:
            lines.append(
                f"it prefers what is shown first in {first:.0%}; 'm' and 'M' have {letters:.0%} of its next token"
            )
        if self.little_mass:
            lines.append(
                f"'m' and 'M' have less than {MASS:.0%} of its next token: {len(self.little_mass)}; prompt "
                f"{', '.join(f'{item.index} {short(item.prompt)}' for item in self.little_mass[:EXAMPLES])}"
                + ", ..."
                * (len(self.little_mass) > EXAMPLES)
            )
        if self.spent.prompt_tokens:
            lines.append(f"tokens: {self.spent.prompt_tokens:,} read, {self.spent.completion_tokens:,} written")
        if self.cost_now is not None:
            lines.append(f"cost: ${self.cost_now:.2f} in this call, ${self.spent.cost or 0:.2f} for all answers kept")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; all answers are kept, the same command goes on")
        lines += self._failures()
        if self.drawn:
            lines.append(f"equal texts, counted as draws: {self.drawn}")
        if self.garbled:
            lines.append(f"texts with marks of the official prompt, judged as the package does: {len(self.garbled)}")
        if self.damaged:
            lines.append(f"damaged lines among the kept answers, asked again: {self.damaged}")
        return lines

    def _failures(self) -> list[str]:
        """One line per reason of failures, most frequent first, with the number of prompts and examples."""
        reasons: dict[str, list[BattleItem]] = defaultdict(list)
        for item, reason in self.failed:
            if reason != UNASKED:
                reasons[reason].append(item)
        ranked = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
        lines = []
        for reason, items in ranked[:REASONS]:
            some = ", ".join(f"{item.index} {short(item.prompt)}" for item in items[:EXAMPLES])
            lines.append(f"failed: {reason}: {len(items)}; prompt {some}{', ...' * (len(items) > EXAMPLES)}")
        rest = sum(len(items) for _, items in ranked[REASONS:])
        return [*lines, f"failed for {len(ranked) - REASONS} other reasons: {rest}"] if rest else lines

    def plain(self) -> Facts:
        """The record as JSON-ready values."""
        metric = self.metric
        return {
            "schema": SCHEMA,
            "evaluation": "AlpacaEval 2",
            "generator": self.battle.generator,
            "baseline": self.battle.baseline,
            "files": self.battle.files,
            "judge": dict(self.judge),
            "n": len(self.battle.items),
            "answered": len(self.preferences),
            "win_rate": metric["value"] if metric else None,
            "standard_error": metric["standard_error"] if metric else None,
            "interval": metric["interval"] if metric else None,
            "reliable": self.reliable,
            "sentence": self.sentence,
            "failed": [
                {"prompt_index": item.index, "prompt_hash": item.hash, "reason": reason} for item, reason in self.failed
            ],
            "stopped": self.stopped,
            "equal_texts": self.drawn,
            "garbled": list(self.garbled),
            "first_shown_preferred": self.first_shown_preferred,
            "letter_probability": self.letter_probability,
            "little_mass": len(self.little_mass),
            "model_chars": _mean([len(item.model) for item in self.battle.items if item.model is not None]),
            "baseline_chars": _mean([len(item.baseline) for item in self.battle.items]),
            "tokens": {"prompt": self.spent.prompt_tokens, "completion": self.spent.completion_tokens},
            "cost": self.spent.cost,
            "cost_now": self.cost_now,
            "seconds": round(self.seconds, 2),
            "damaged_lines": self.damaged,
            **code_version(),
            "versions": package_versions(),
        }

    def table(self) -> list[AnnotationRow]:
        """One row per comparison, for `stagealign lc-win-rate`; the preference is None if the judge gave none.

        A prompt without a completion was never compared, so only the record has it.
        """
        return [
            {
                "prompt_index": item.index,
                "generator": self.battle.generator,
                "preference": answer.preference,
                "baseline_chars": len(item.baseline),
                "model_chars": len(item.model),
                "prompt_hash": item.hash,
                "failed": None if answer.preference is not None else answer.failed or UNASKED,
                "preference_scale": "1-2",
            }
            for item, answer in zip(self.battle.items, self._ordered(), strict=True)
            if item.model is not None
        ]

    def _ordered(self) -> list[JudgeAnswer]:
        return [self.answers.get(item.hash, JudgeAnswer()) for item in self.battle.items]


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None


def writable(annotations: Path | None) -> None:
    """Raises BadData if no table can be written with the ending of this path."""
    if annotations is not None and annotations.suffix not in ENDINGS:
        raise BadData(f"--annotations {annotations}: unknown ending; one of {', '.join(ENDINGS)}")


def write(result: WinRateResult, annotations: Path | None) -> None:
    """Writes the annotations atomically, if a path is given."""
    if annotations is not None:
        write_bytes(annotations, _encoded(result.table(), annotations.suffix))


def _encoded(table: Sequence[Mapping[str, object]], ending: str) -> bytes:
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in table).encode()
    import pandas as pd

    if ending == ".csv":
        table = [{name: no_formula(value) for name, value in row.items()} for row in table]
    frame = pd.DataFrame(table).astype({"preference": "float64"})
    data = io.BytesIO()
    if ending == ".csv":
        frame.to_csv(data, index=False, lineterminator="\n")
    else:
        frame.to_parquet(data, index=False)
    return data.getvalue()
