"""Metrics of one policy: gold reward, win rate, length, repetition, KL and boundary score of its completions."""

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
"""Row of `votes.jsonl`: votes `on` and `off`, votes by top candidate `top_on` and `top_off`, and `ties`."""


class BoundaryFacts(TypedDict):
    """Boundary score by cross votes with its interval, and the score by top candidate."""

    score: float
    interval: list[float]
    votes_on: float
    votes_off: float
    ties: int
    top_score: float
    prompts: int


class PolicyMetrics(TypedDict):
    """Metrics of one policy on one split, in the format of results."""

    gold: Metric
    clean_gold: Metric
    win_rate: Metric
    length: Metric
    degenerate: Metric
    truncated: Metric
    kl: NotRequired[Metric]
    """Absent for a starting policy, which has no reference."""
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
    """The same, where a degenerate completion counts as the worst static candidate of all prompts."""
    win_rate: float
    """Percent."""


@dataclass(frozen=True)
class Evaluated:
    """A policy's completions on one split, and all inputs of its metrics."""

    completions: Sequence[Candidate]
    readings: Mapping[str, GoldReading]
    """Gold readings by prompt."""
    votes: Sequence[Votes]
    kl: Mapping[Place, float]
    """KL to the round's start of each prompt's first completion, in nats; empty for a starting policy."""
    limit: float
    """Share of repeated bigrams above which a completion is degenerate."""
    unit: str
    """Unit of the gold reward."""


def score(work: Work) -> Facts:
    """Builder of `scores` for a gold reward that scores texts: policy metrics by split."""
    completions = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    static = read_rows(work.inputs["static"] / "candidates.jsonl", Candidate)
    splits = {p.text: p.split for p in read_rows(work.inputs["static"] / "prompts.jsonl", Prompt)}
    readings = _against_pool(work, completions, static)
    votes = {row["prompt"]: row for row in read_dicts(work.inputs["votes"] / "votes.jsonl")}
    parts = {}
    for split in ("validation", "test"):
        mine = [completion for completion in completions if splits[completion.prompt] == split]
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
    """Writes `scores.json`, the policy metrics by split; `parts`: (completions, votes) of each split."""
    kl, limit, unit = _kl(work, completions), work.params["repetition_limit"], gold_row(work.params["gold"]).unit
    scores = {
        split: policy_metrics(Evaluated(mine, readings, votes, kl, limit, unit))
        for split, (mine, votes) in parts.items()
    }
    text = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False)
    (work.out / "scores.json").write_text(text, encoding="utf-8")


def place_of(candidate: Candidate) -> Place:
    """Key by which values are joined with a completion."""
    return prompt_hash(candidate.prompt), candidate.source, candidate.index


def repeated_bigrams(text: str) -> float:
    """Share of bigrams that occurred earlier in the same text; 0 for fewer than two words."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _kl(work: Work, completions: Sequence[Candidate]) -> dict[Place, float]:
    """KL to the round's start of each prompt's first completion, in nats; empty for a starting policy."""
    if "reference" not in work.inputs:
        return {}
    first = [completion for completion in completions if completion.index == 0]
    reference, policy = (
        lm.on_gpu(lm.load(work.inputs[name], dtype=work.params["dtype"])) for name in ("reference", "policy")
    )
    values = kl_to(reference, policy, first)
    check_finite(
        values,
        [prompt_hash(completion.prompt) for completion in first],
        "KL to the round's start",
        "check the policy's weights",
    )
    return dict(zip(map(place_of, first), values, strict=True))


def _against_pool(work: Work, completions: Sequence[Candidate], static: Sequence[Candidate]) -> dict[str, GoldReading]:
    """Gold readings by prompt: rewards of its completions, and how often they beat its static candidates."""
    candidates, gold = [*completions, *static], work.params["gold"]
    values = [work.params["sign"] * reward for reward in _rewards(work, gold_row(gold), candidates)]
    hashes = [prompt_hash(candidate.prompt) for candidate in candidates]
    check_finite(values, hashes, f"gold reward {gold!r}", "check the gold reward's weights")
    rewards = dict(zip(map(place_of, candidates), values, strict=True))
    pool = {
        prompt: [rewards[place_of(candidate)] for candidate in group] for prompt, group in by_prompt(static).items()
    }
    worst = min(map(min, pool.values()))
    return {
        prompt: against(
            group,
            [rewards[place_of(candidate)] for candidate in group],
            pool[prompt],
            worst,
            work.params["repetition_limit"],
        )
        for prompt, group in by_prompt(completions).items()
    }


def _rewards(work: Work, row: GoldKinds, candidates: Iterable[Candidate]) -> list[float]:
    """Rewards of these candidates, in order, from the artifact `rewards` if there is one, else by the row's scorer."""
    if "rewards" not in work.inputs:
        rewards: list[float] = code_at(row.scorer)(
            work.inputs["gold"], [candidate.completion for candidate in candidates]
        )
        return rewards
    known = {
        (reward["prompt"], reward["source"], reward["index"]): reward["reward"]
        for reward in read_dicts(work.inputs["rewards"] / "rewards.jsonl")
    }
    return [known[place_of(candidate)] for candidate in candidates]


def against(
    group: Sequence[Candidate], rewards: Sequence[float], pool: Sequence[float], worst: float, limit: float
) -> GoldReading:
    """Gold reading of one prompt from its completions' rewards and those of its static candidates (`pool`)."""
    clean = [
        worst if degenerate(completion.completion, limit) else r for completion, r in zip(group, rewards, strict=True)
    ]
    wins = [(ours > theirs) + 0.5 * (ours == theirs) for ours in rewards for theirs in pool]
    return GoldReading(float(np.mean(rewards)), float(np.mean(clean)), 100 * float(np.mean(wins)))


def degenerate(completion: str, limit: float) -> bool:
    """True if a completion is empty, or its share of repeated bigrams is above `limit`."""
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
"""Unit of each metric that is a mean over prompts; empty for the unit of the gold reward."""


def policy_metrics(given: Evaluated) -> PolicyMetrics:
    """Metrics of one policy on one split: means over prompts of the means over a prompt's completions.

    A collapsed policy has the reason in `collapsed`, and no win rate.
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
    broken = collapsed([completion.completion for completion in given.completions], moved, metrics["length"]["value"])
    if broken:  # a win rate of collapsed text has no meaning
        metrics["collapsed"] = broken
        metrics["win_rate"] |= {
            "value": None,
            "standard_error": None,
            "interval": None,
            "reason": f"collapsed: {broken}",
        }
    return metrics


def _prompt_values(group: Sequence[Candidate], given: Evaluated) -> dict[str, float]:
    """Means over one prompt's completions, by metric; KL is over the completions that have one."""
    values = {
        **asdict(given.readings[group[0].prompt]),
        "length": float(np.mean([completion.tokens for completion in group])),
        "degenerate": 100 * float(np.mean([degenerate(completion.completion, given.limit) for completion in group])),
        "truncated": 100 * float(np.mean([completion.truncated for completion in group])),
    }
    if given.kl:
        values["kl"] = float(
            np.mean([given.kl[place_of(completion)] for completion in group if place_of(completion) in given.kl])
        )
    return values


def boundary(votes: Sequence[Votes]) -> BoundaryFacts:
    """Boundary scores of these votes, rounded for results."""
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
