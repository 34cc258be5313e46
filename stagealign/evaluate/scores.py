"""Completions to numbers: gold reward, win rate, length, repetition, KL and boundary score of one policy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from stagealign.base.kind import code_at
from stagealign.data.records import Candidate, Prompt, by_prompt, prompt_hash, read_dicts, read_rows
from stagealign.evaluate.kl import kl_to
from stagealign.grid.preferences import GoldKinds, gold_row
from stagealign.policy import lm
from stagealign.stats.finite import check_finite, collapsed
from stagealign.stats.statistics import Metric, mean_metric
from stagealign.stats.votes import boundary_score
from stagealign.store.artifact import Facts, Work

Place = tuple[str, str, int]
"""Key of a completion: prompt hash, source and index."""
Votes = Mapping[str, Any]
"""A row of `votes.jsonl`: shares `on` and `off`, those by top candidate, and `ties`."""


class BoundaryFacts(TypedDict):
    """Boundary score by cross votes with its interval, and the score by top candidate beside it."""

    score: float
    interval: list[float]
    votes_on: float
    votes_off: float
    ties: int
    top_score: float
    prompts: int


class PolicyMetrics(TypedDict):
    """Numbers of one policy on one split, as results have them."""

    gold: Metric
    clean_gold: Metric
    win_rate: Metric
    length: Metric
    degenerate: Metric
    truncated: Metric
    kl: NotRequired[Metric]
    """Absent for a start, which has no reference."""
    collapsed: NotRequired[str]
    """Reason why the policy counts as collapsed; it then has no win rate."""
    boundary: BoundaryFacts
    prompts: dict[str, list[float]]
    """Gold reward and clean gold reward by prompt hash."""


@dataclass(frozen=True)
class GoldReading:
    """Gold reward of one prompt's completions, as means over them."""

    gold: float
    clean_gold: float
    """The same with a degenerate completion counted as the worst there is."""
    win_rate: float
    """Percent."""


@dataclass(frozen=True)
class Evaluated:
    """A policy's completions on one split, and all that its numbers are made of."""

    completions: Sequence[Candidate]
    readings: Mapping[str, GoldReading]
    """By prompt."""
    votes: Sequence[Votes]
    kl: Mapping[Place, float]
    """KL to the round's start of each prompt's first completion, in nats; empty for a start."""
    limit: float
    """Share of repeated bigrams beyond which a completion is degenerate."""
    unit: str
    """Of the gold reward."""


def score(work: Work) -> Facts:
    """Builder of `scores` by a scorer of texts: the policy metrics of `results.py`, by split."""
    completions = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    static = read_rows(work.inputs["static"] / "candidates.jsonl", Candidate)
    splits = {p.text: p.split for p in read_rows(work.inputs["static"] / "prompts.jsonl", Prompt)}
    readings = _against_pool(work, completions, static)
    votes = {row["prompt"]: row for row in read_dicts(work.inputs["votes"] / "votes.jsonl")}
    parts = {}
    for split in ("validation", "test"):
        mine = [one for one in completions if splits[one.prompt] == split]
        if mine:  # a scale may have no validation prompts
            parts[split] = mine, [votes[prompt_hash(prompt)] for prompt in by_prompt(mine)]
    write_scores(work, completions, parts, readings)
    return {"completions": len(completions)}


def write_scores(
    work: Work,
    completions: Sequence[Candidate],
    parts: Mapping[str, tuple[Sequence[Candidate], Sequence[Votes]]],
    readings: Mapping[str, GoldReading],
) -> None:
    """Writes `scores.json`: the policy metrics of each split, whose completions and votes are its `parts`."""
    kl, limit, unit = _kl(work, completions), work.params["repetition_limit"], gold_row(work.params["gold"]).unit
    scores = {
        split: policy_metrics(Evaluated(mine, readings, votes, kl, limit, unit))
        for split, (mine, votes) in parts.items()
    }
    text = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False)
    (work.out / "scores.json").write_text(text, encoding="utf-8")


def place_of(one: Candidate) -> Place:
    """Key that joins a completion with what was computed of it."""
    return prompt_hash(one.prompt), one.source, one.index


def repeated_bigrams(text: str) -> float:
    """Share of word pairs that stood before in the same text; 0 for fewer than two words."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _kl(work: Work, completions: Sequence[Candidate]) -> dict[Place, float]:
    """KL to the round's start of each prompt's first completion; empty if the policy is a start."""
    if "reference" not in work.inputs:
        return {}
    first = [one for one in completions if one.index == 0]
    reference, policy = (
        lm.on_gpu(lm.load(work.inputs[name], dtype=work.params["dtype"])) for name in ("reference", "policy")
    )
    values = kl_to(reference, policy, first)
    check_finite(
        values, [prompt_hash(one.prompt) for one in first], "KL to the round's start", "look at the policy's weights"
    )
    return dict(zip(map(place_of, first), values, strict=True))


def _against_pool(work: Work, completions: Sequence[Candidate], static: Sequence[Candidate]) -> dict[str, GoldReading]:
    """Readings by prompt: rewards of its completions, and how often they beat the prompt's static candidates."""
    every, gold = [*completions, *static], work.params["gold"]
    values = [work.params["sign"] * reward for reward in _rewards(work, gold_row(gold), every)]
    hashes = [prompt_hash(one.prompt) for one in every]
    check_finite(values, hashes, f"gold reward {gold!r}", "look at the gold reward's weights")
    rewards = dict(zip(map(place_of, every), values, strict=True))
    pool = {prompt: [rewards[place_of(one)] for one in group] for prompt, group in by_prompt(static).items()}
    worst = min(min(one) for one in pool.values())
    return {
        prompt: against(
            group, [rewards[place_of(one)] for one in group], pool[prompt], worst, work.params["repetition_limit"]
        )
        for prompt, group in by_prompt(completions).items()
    }


def _rewards(work: Work, row: GoldKinds, texts: Iterable[Candidate]) -> list[float]:
    """Rewards of these texts, in order: as an artifact has them, else by the row's scorer."""
    if "rewards" not in work.inputs:
        rewards: list[float] = code_at(row.scorer)(work.inputs["gold"], [one.completion for one in texts])
        return rewards
    known = {
        (reward["prompt"], reward["source"], reward["index"]): reward["reward"]
        for reward in read_dicts(work.inputs["rewards"] / "rewards.jsonl")
    }
    return [known[place_of(one)] for one in texts]


def against(
    group: Sequence[Candidate], rewards: Sequence[float], pool: Sequence[float], worst: float, limit: float
) -> GoldReading:
    """One prompt's completions with their rewards, held against the rewards of its static candidates."""
    clean = [worst if degenerate(one.completion, limit) else r for one, r in zip(group, rewards, strict=True)]
    wins = [(ours > theirs) + 0.5 * (ours == theirs) for ours in rewards for theirs in pool]
    return GoldReading(float(np.mean(rewards)), float(np.mean(clean)), 100 * float(np.mean(wins)))


def degenerate(completion: str, limit: float) -> bool:
    """Whether a completion is empty, or has more than `limit` repeated bigrams."""
    return not completion or repeated_bigrams(completion) > limit


UNITS = {
    "gold": "",
    "clean_gold": "",
    "win_rate": "percent",
    "length": "tokens",
    "degenerate": "percent",
    "truncated": "percent",
    "kl": "nats a completion",
}
"""Unit of each metric that is a mean over prompts; empty: that of the gold reward."""


def policy_metrics(given: Evaluated) -> PolicyMetrics:
    """Metrics of one policy on one split: means over a prompt's completions first, prompts are the units.

    A policy that collapsed has `collapsed`, the reason, and no win rate.
    """
    rows = {prompt_hash(prompt): _prompt_values(group, given) for prompt, group in by_prompt(given.completions).items()}
    means = {
        name: mean_metric([row[name] for row in rows.values()], unit or given.unit)
        for name, unit in UNITS.items()
        if name != "kl" or given.kl
    }
    prompts = {name: [round(row["gold"], 4), round(row["clean_gold"], 4)] for name, row in rows.items()}
    metrics = cast(PolicyMetrics, {**means, "boundary": boundary(given.votes), "prompts": prompts})
    moved = metrics["kl"]["value"] if given.kl else None
    broken = collapsed([one.completion for one in given.completions], moved, metrics["length"]["value"])
    if broken:  # what it writes says nothing, so no rate is made of it
        metrics["collapsed"] = broken
        metrics["win_rate"] |= {
            "value": None,
            "standard_error": None,
            "interval": None,
            "reason": f"collapsed: {broken}",
        }
    return metrics


def _prompt_values(group: Sequence[Candidate], given: Evaluated) -> dict[str, float]:
    """Means over one prompt's completions, by name; its KL is that of the completions that have one."""
    values = {
        **asdict(given.readings[group[0].prompt]),
        "length": float(np.mean([one.tokens for one in group])),
        "degenerate": 100 * float(np.mean([degenerate(one.completion, given.limit) for one in group])),
        "truncated": 100 * float(np.mean([one.truncated for one in group])),
    }
    if given.kl:
        values["kl"] = float(np.mean([given.kl[place_of(one)] for one in group if place_of(one) in given.kl]))
    return values


def boundary(votes: Sequence[Votes]) -> BoundaryFacts:
    """Boundary score of the votes of some prompts."""
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
