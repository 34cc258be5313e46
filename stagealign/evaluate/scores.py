"""Completions to numbers: gold reward, win rate, length, repetition, KL and boundary score of one policy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from stagealign.data.records import Candidate, Prompt, by_prompt, prompt_hash, read_dicts, read_rows
from stagealign.evaluate.alpaca_eval.length_control import features, pseudo_values
from stagealign.evaluate.gold import GOLDS
from stagealign.evaluate.kl import kl_to
from stagealign.policy import lm
from stagealign.stats.finite import check_finite, collapsed
from stagealign.stats.statistics import mean_metric
from stagealign.stats.votes import boundary_score
from stagealign.store.artifact import Work


def repeated_bigrams(text: str) -> float:
    """Share of word pairs that stood before in the same text; 0 for fewer than two words."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


@dataclass(frozen=True)
class Reading:
    """What the gold reward says of one prompt's completions, all as means over them."""

    gold: float
    clean_gold: float
    """The same with a degenerate completion counted as the worst there is."""
    win_rate: float
    """Percent."""


def score(work: Work) -> dict[str, Any]:
    """Builder of `scores`: the policy metrics of `results.py`, by split."""
    completions = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    static = read_rows(work.inputs["static"] / "candidates.jsonl", Candidate)
    splits = {p.text: p.split for p in read_rows(work.inputs["static"] / "prompts.jsonl", Prompt)}
    limit = work.params["repetition_limit"]
    readings = _against_pool(work, completions, static, limit)
    unit = "points of the reward model" if "rewards" in work.inputs else "rating points"
    votes = {row["prompt"]: row for row in read_dicts(work.inputs["votes"] / "votes.jsonl")}
    kl = _kl(work, completions)
    scores = {}
    for split in ("validation", "test"):
        mine = [c for c in completions if splits[c.prompt] == split]
        if not mine:  # a scale without validation prompts
            continue
        own = [votes[prompt_hash(prompt)] for prompt in by_prompt(mine)]
        scores[split] = policy_metrics(mine, readings, own, kl, limit, unit)
    _write(work, scores)
    return {"completions": len(completions)}


def score_annotated(work: Work) -> dict[str, Any]:
    """Builder of `scores` where a judge evaluates: `gold` is the length-controlled win rate, of AlpacaEval's prompts.

    A prompt's number is its pseudo-value: their mean is the length-controlled win rate and their spread its sampling
    error, so that two policies are compared prompt by prompt. The boundary score is of the votes' own prompts. An
    answer without a preference is counted, and takes the mean of the others: it moves no rate and breaks no pairing.
    """
    answers = read_rows(work.inputs["answers"] / "candidates.jsonl", Candidate)
    annotated = list(read_dicts(work.inputs["annotations"] / "annotations.jsonl"))
    limit = work.params["repetition_limit"]
    readings = annotated_readings(answers, annotated, limit)
    votes = list(read_dicts(work.inputs["votes"] / "votes.jsonl"))
    metrics = policy_metrics(answers, readings, votes, _kl(work, answers), limit, "LC win rate points")
    _write(work, {"test": metrics})
    failed = sum(row["preference"] is None for row in annotated)
    return {"completions": len(answers), "without_preference": failed}


def annotated_readings(
    answers: Sequence[Candidate], annotated: Sequence[Mapping[str, Any]], limit: float
) -> dict[str, Reading]:
    """By prompt, what a judge's preferences say of one answer each; a degenerate answer counts as lost when clean.

    `annotated` has `prompt_hash`, `preference` (1 baseline ... 2 policy, or None), lengths and `difficulty`.
    """
    of = {prompt_hash(one.prompt): one for one in answers}
    rows = [row for row in annotated if row["preference"] is not None]
    inputs = features(*([row[name] for row in rows] for name in ("baseline_chars", "model_chars", "difficulty")))
    wins = np.array([row["preference"] - 1 for row in rows])
    lost = [degenerate(of[row["prompt_hash"]].completion, limit) for row in rows]
    gold, clean = (pseudo_values(inputs, outcomes) for outcomes in (wins, np.where(lost, 0.0, wins)))
    found = {
        of[row["prompt_hash"]].prompt: Reading(*map(float, values))
        for row, *values in zip(rows, gold, clean, 100 * wins, strict=True)
    }
    mean = Reading(float(gold.mean()), float(clean.mean()), float(100 * wins.mean()))
    return {one.prompt: found.get(one.prompt, mean) for one in answers}


def _write(work: Work, scores: Mapping[str, Any]) -> None:
    (work.out / "scores.json").write_text(
        json.dumps(scores, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8"
    )


def _kl(work: Work, completions: Sequence[Candidate]) -> dict[int, float]:
    """KL to the round's start of each prompt's first completion, by its id; empty where the policy is a start."""
    if "reference" not in work.inputs:
        return {}
    first = [one for one in completions if one.index == 0]
    reference, policy = (
        lm.on_gpu(lm.load(work.inputs[name], dtype=work.params["dtype"])) for name in ("reference", "policy")
    )
    found = kl_to(reference, policy, first)
    named = [prompt_hash(one.prompt) for one in first]
    check_finite(found, named, "KL to the round's start", "look at the policy's weights")
    return dict(zip(map(id, first), found, strict=True))


def _against_pool(
    work: Work, completions: Sequence[Candidate], static: Sequence[Candidate], limit: float
) -> dict[str, Reading]:
    """By prompt: rewards of its completions, and how often they beat the static candidates of that prompt."""
    if "rewards" in work.inputs:
        known = {_place(row): row["reward"] for row in read_dicts(work.inputs["rewards"] / "rewards.jsonl")}
        found = [known[prompt_hash(one.prompt), one.source, one.index] for one in (*completions, *static)]
    else:
        found = GOLDS[work.params["gold"]](work.inputs["gold"], [one.completion for one in (*completions, *static)])
    values = [work.params["sign"] * one for one in found]
    prompts = [prompt_hash(one.prompt) for one in (*completions, *static)]
    check_finite(values, prompts, f"gold reward {work.params['gold']!r}", "look at the gold reward's weights")
    gold = dict(zip(map(id, (*completions, *static)), values, strict=True))
    pool = {prompt: [gold[id(one)] for one in group] for prompt, group in by_prompt(static).items()}
    worst = min(min(one) for one in pool.values())
    return {
        prompt: against(group, [gold[id(one)] for one in group], pool[prompt], worst, limit)
        for prompt, group in by_prompt(completions).items()
    }


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["prompt"], row["source"], row["index"]


def against(
    group: Sequence[Candidate], rewards: Sequence[float], pool: Sequence[float], worst: float, limit: float
) -> Reading:
    """One prompt's completions with their rewards, held against the rewards of its static candidates."""
    clean = [worst if degenerate(one.completion, limit) else r for one, r in zip(group, rewards, strict=True)]
    wins = [(ours > theirs) + 0.5 * (ours == theirs) for ours in rewards for theirs in pool]
    return Reading(float(np.mean(rewards)), float(np.mean(clean)), 100 * float(np.mean(wins)))


def degenerate(completion: str, limit: float) -> bool:
    """Whether a completion is empty, or has more than `limit` repeated bigrams."""
    return not completion or repeated_bigrams(completion) > limit


def policy_metrics(
    completions: Sequence[Candidate],
    readings: Mapping[str, Reading],
    votes: Sequence[Mapping[str, Any]],
    kl: Mapping[int, float],
    repetition_limit: float,
    unit: str,
) -> dict[str, Any]:
    """Metrics of one policy on one split; means over a prompt's completions first, prompts are the units.

    `readings` is by prompt, `unit` that of the gold reward. A policy that collapsed has `collapsed`, the reason, and no
    win rate.
    """
    rows: list[dict[str, Any]] = []
    for prompt, group in by_prompt(completions).items():
        bad = [degenerate(one.completion, repetition_limit) for one in group]
        rows.append(
            {
                "hash": prompt_hash(prompt),
                **asdict(readings[prompt]),
                "length": float(np.mean([one.tokens for one in group])),
                "degenerate": 100 * float(np.mean(bad)),
                "truncated": 100 * float(np.mean([one.truncated for one in group])),
                "kl": float(np.mean([kl[id(one)] for one in group if id(one) in kl])) if kl else None,
            }
        )
    units = {
        "gold": unit,
        "clean_gold": unit,
        "win_rate": "percent",
        "length": "tokens",
        "degenerate": "percent",
        "truncated": "percent",
        "kl": "nats a completion",
    }
    metrics: dict[str, Any] = {
        name: mean_metric([row[name] for row in rows], unit) for name, unit in units.items() if name != "kl" or kl
    }
    length, moved = metrics["length"]["value"], metrics["kl"]["value"] if kl else None
    broken = collapsed([one.completion for one in completions], moved, length)
    if broken:  # what it writes says nothing, so no rate is made of it
        metrics["collapsed"] = broken
        metrics["win_rate"] |= {
            "value": None,
            "standard_error": None,
            "interval": None,
            "reason": f"collapsed: {broken}",
        }
    metrics["boundary"] = boundary(votes)
    metrics["prompts"] = {row["hash"]: [round(row["gold"], 4), round(row["clean_gold"], 4)] for row in rows}
    return metrics


def boundary(votes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Boundary score by cross votes with its interval, and the reading by top candidate beside it."""
    cross = boundary_score([(row["on"], row["off"]) for row in votes])
    top = boundary_score([(row["top_on"], row["top_off"]) for row in votes])
    return {
        "score": round(cross.score, 4),
        "interval": [round(x, 4) for x in cross.interval],
        "votes_on": cross.votes_on,
        "votes_off": cross.votes_off,
        "ties": sum(row["ties"] for row in votes),
        "top_score": round(top.score, 4),
        "prompts": len(votes),
    }
