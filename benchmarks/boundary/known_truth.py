"""Coverage, wrong decisions and prompts needed in worlds of a known boundary score (`benchmarks.boundary.world`)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.boundary.world import CORRELATION, World, world_at
from stagealign.stats.decision import Decision
from stagealign.stats.streams import first_decisions
from stagealign.stats.votes import boundary_score

PAPER_PROMPTS = 2000
Row = dict[str, Any]


def coverage(seed: int, repetitions: int) -> list[Row]:
    """Share of 95% intervals that hold the true score, one row for each (score, correlation, prompts)."""
    rows = []
    for score in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9):
        for correlation in (None, CORRELATION):
            world = world_at(score, correlation)
            for prompts in (10, 30, 100, 400):
                rng = np.random.default_rng([seed, round(100 * score), prompts, correlation is None])
                measured = [boundary_score(votes) for votes in world.votes(rng, (repetitions, prompts))]
                intervals = [boundary.interval for boundary in measured]
                inside = [low <= score <= high for low, high in intervals]
                rows.append(
                    {
                        "score": score,
                        "correlation": round(world.correlation, 3),
                        "prompts": prompts,
                        "repetitions": repetitions,
                        "coverage": float(np.mean(inside)),
                        "width": float(np.mean([high - low for low, high in intervals])),
                    }
                )
    return rows


def wrong_decisions(seed: int, streams: int, prompts: int = PAPER_PROMPTS) -> list[Row]:
    """Share of streams near 0.5 in which the sequential decision names the wrong stage within `prompts` prompts."""
    rows = []
    for score in (0.49, 0.5, 0.51):
        for reading in ("cross", "top"):
            world = world_at(score)
            truth = world.cross_score if reading == "cross" else world.top_score()
            rng = np.random.default_rng([seed, round(100 * score), reading == "top"])
            _, sign = decide(world, rng, streams, prompts, reading)
            # At 0.5 the rule says fine-tuning by convention, so only the worlds beside it have a wrong stage.
            wrong = None if score == 0.5 else float((sign == (-1 if score > 0.5 else 1)).mean())
            rows.append(
                {
                    "score": score,
                    "reading": reading,
                    "reading_score": round(truth, 6),
                    "streams": streams,
                    "prompts": prompts,
                    "wrong": wrong,
                    "named_either": float((sign != 0).mean()),
                    "named_injection": float((sign < 0).mean()),
                    "named_fine_tuning": float((sign > 0).mean()),
                }
            )
    return rows


def prompts_needed(seed: int, streams: int) -> list[Row]:
    """Prompts until the stage is named, one row for each gap and reading; undecided means above the horizon."""
    rows = []
    for gap in (0.02, 0.05, 0.1, 0.16, 0.2, 0.25):
        world = world_at(0.5 + gap)
        horizon = min(12_000, math.ceil(9 / gap**2))
        for reading in ("cross", "top"):
            rng = np.random.default_rng([seed, round(100 * gap), reading == "top"])
            at, sign = decide(world, rng, streams if gap >= 0.05 else streams // 4, horizon, reading)
            waited = np.where(at > 0, at, horizon + 1)
            rows.append(
                {
                    "gap": gap,
                    "reading": reading,
                    "streams": len(at),
                    "horizon": horizon,
                    "median": _or_beyond(waited, 0.5, horizon),
                    "p90": _or_beyond(waited, 0.9, horizon),
                    "undecided": float((at == 0).mean()),
                    "wrong": float((sign < 0).mean()),
                    "paper": PAPER_PROMPTS,
                }
            )
    return rows


def forecasts(seed: int, streams: int) -> list[Row]:
    """Forecasts of `Decision.prompts_needed` after an undecided budget: quartiles, one row for each gap."""
    rows = []
    for gap, budget in ((0.02, 400), (0.05, 100), (0.1, 40)):
        world = world_at(0.5 + gap)
        rng = np.random.default_rng([seed, round(100 * gap)])
        forecast = []
        for votes in world.votes(rng, (streams, budget)):
            decision = Decision(most_votes=4)
            for on, off in votes:
                if decision.update(on, off) != "undecided":
                    break
            else:
                needed = decision.prompts_needed()
                forecast.append(math.inf if needed is None else needed)
        middle = np.quantile(forecast, (0.25, 0.5, 0.75), method="nearest")
        rows.append(
            {
                "gap": gap,
                "budget": budget,
                "undecided_streams": len(forecast),
                "said_quartiles": [None if math.isinf(value) else int(value) for value in middle],
            }
        )
    return rows


def decide(
    world: World, rng: np.random.Generator, streams: int, prompts: int, reading: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`first_decisions` of fresh streams of the world, in parts that fit in memory."""
    at, sign = [], []
    part = max(1, 400_000 // prompts)
    for start in range(0, streams, part):
        votes = world.votes(rng, (min(part, streams - start), prompts), reading)
        prompt, side = first_decisions(votes, most_votes=4 if reading == "cross" else 1)
        at.append(prompt)
        sign.append(side)
    return np.concatenate(at), np.concatenate(sign)


def _or_beyond(waited: NDArray[np.int64], share: float, horizon: int) -> int | None:
    """Quantile of waiting times; None if it lies beyond the horizon."""
    value = int(np.quantile(waited, share, method="higher"))
    return None if value > horizon else value
