"""Metrics of a policy from annotations of AlpacaEval 2: its gold reward is the length-controlled (LC) win rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagealign.data.records import Candidate, prompt_hash, read_dicts, read_rows
from stagealign.evaluate.alpaca_eval.length_control import features, pseudo_values
from stagealign.evaluate.scores import GoldReading, degenerate, write_scores
from stagealign.store.artifact import Facts, Work


def score(work: Work) -> Facts:
    """Builder of `scores` from annotations of AlpacaEval's prompts: policy metrics of split `test`.

    The value of a prompt is its pseudo-value, so two policies can be compared prompt by prompt (`pseudo_values`). The
    boundary score is over the prompts of the votes. An answer without a preference is counted and gets the mean of the
    others, which changes no rate and keeps prompts paired.
    """
    answers = read_rows(work.inputs["answers"] / "candidates.jsonl", Candidate)
    annotated = list(read_dicts(work.inputs["annotations"] / "annotations.jsonl"))
    votes = list(read_dicts(work.inputs["votes"] / "votes.jsonl"))
    readings = annotated_readings(answers, annotated, work.params["repetition_limit"])
    write_scores(work, answers, {"test": (answers, votes)}, readings)
    failed = sum(row["preference"] is None for row in annotated)
    return {"completions": len(answers), "without_preference": failed}


def annotated_readings(
    answers: Sequence[Candidate], annotated: Sequence[Mapping[str, Any]], limit: float
) -> dict[str, GoldReading]:
    """Gold readings by prompt from a judge's preferences; in `clean_gold`, a degenerate answer counts as lost.

    `annotated` has `prompt_hash`, `preference` (from 1, baseline, to 2, policy; or None), lengths and `difficulty`.
    """
    by_hash = {prompt_hash(answer.prompt): answer for answer in answers}
    rows = [row for row in annotated if row["preference"] is not None]
    inputs = features(*([row[name] for row in rows] for name in ("baseline_chars", "model_chars", "difficulty")))
    wins = np.array([row["preference"] - 1 for row in rows])
    lost = [degenerate(by_hash[row["prompt_hash"]].completion, limit) for row in rows]
    gold, clean = (pseudo_values(inputs, outcomes) for outcomes in (wins, np.where(lost, 0.0, wins)))
    readings = {
        by_hash[row["prompt_hash"]].prompt: GoldReading(*map(float, values))
        for row, *values in zip(rows, gold, clean, 100 * wins, strict=True)
    }
    mean = GoldReading(float(gold.mean()), float(clean.mean()), float(100 * wins.mean()))
    return {answer.prompt: readings.get(answer.prompt, mean) for answer in answers}
