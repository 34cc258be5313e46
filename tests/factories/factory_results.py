"""Made-up results with the real shape, for tests of the report: small, seeded, and honest about being made up."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagealign.base.identity import fingerprint, plain, stream
from stagealign.grid import registry
from stagealign.grid.cell import Cell
from stagealign.stats.statistics import mean_metric, paired_gain
from stagealign.store.results import SCHEMA, write_result

PROMPTS = 40
BOUNDARY = {"pythia": 0.22, "phi2": 0.26, "zephyr": 0.34, "qwen": 0.48, "llama3": 0.59}
RATES = (1.5e-4, 3e-4)


def policy(name: str, seed: int, level: float, score: float, repeat: float = 0.02) -> dict[str, Any]:
    """Metrics of a policy with mean gold reward `level`; the same name and seed give the same prompts and noise."""
    return {split: _split(name, seed, split, level, score, repeat) for split in ("validation", "test")}


def _split(name: str, seed: int, split: str, level: float, score: float, repeat: float) -> dict[str, Any]:
    rng = np.random.default_rng(stream(seed, name, split))
    base = np.random.default_rng(stream(seed, split)).normal(0, 0.5, PROMPTS)
    gold = level + base + rng.normal(0, 0.2, PROMPTS)
    clean = gold - (rng.random(PROMPTS) < repeat) * 2.0
    hashes = [fingerprint([split, number]) for number in range(PROMPTS)]
    return {
        "gold": mean_metric(list(gold), "rating points"),
        "clean_gold": mean_metric(list(clean), "rating points"),
        "win_rate": mean_metric(list(50 + 10 * gold), "percent"),
        "length": mean_metric(list(rng.normal(24, 3, PROMPTS)), "tokens"),
        "degenerate": {"value": 100 * repeat, "unit": "percent", "n": PROMPTS},
        "truncated": {"value": 10, "unit": "percent", "n": PROMPTS},
        "boundary": {"score": score, "interval": [score - 0.06, score + 0.06], "votes_on": 4 * PROMPTS * score,
                     "votes_off": 4 * PROMPTS * (1 - score), "ties": 0, "top_score": score, "prompts": PROMPTS},
        "prompts": {key: [float(g), float(c)] for key, g, c in zip(hashes, gold, clean, strict=True)},
    }  # fmt: skip


MADE = {
    "commit": "0123456789ab",
    "hardware": "a made-up processor, 2 cores",
    "seconds": 61.5,
    "peak_memory_mib": 900,
}


@dataclass(frozen=True)
class End:
    """Where a round ends."""

    level: float
    """Mean gold reward."""
    score: float
    """Boundary score."""
    kl: float


def rung(name: str, seed: int, rate: float, before: dict[str, Any], end: End) -> dict[str, Any]:
    """A rung that is done; its gains are those of its own prompts."""
    name, kl = f"{name}-{rate:g}", end.kl
    metrics = policy(name, seed, end.level, end.score, repeat=min(0.3, kl / 60))

    def gains(place: int) -> dict[str, Any]:
        return {
            split: paired_gain(
                {key: pair[place] for key, pair in metrics[split]["prompts"].items()},
                {key: pair[place] for key, pair in before[split]["prompts"].items()},
                "rating points",
            )
            for split in ("validation", "test")
        }

    return {
        "learning_rate": rate,
        "state": "done",
        "fingerprint": fingerprint([name, seed]),
        "metrics": metrics,
        "gain": gains(0),
        "clean_gain": gains(1),
        "kl": {"value": kl, "unit": "nats", "n": PROMPTS, "standard_error": 0.1, "interval": [kl - 0.2, kl + 0.2]},
        "training": {"curve": [], "pairs_per_second": 8.0, "reference": {"computed": 128, "reused": 384}},
    }


def result(cell_id: str, seed: int = 0, scale: str = "lab") -> dict[str, Any]:
    """A done run of `cell_id`: off-policy data gains more below 0.5, on-policy data above, plus noise."""
    return of_cell(registry.cell(cell_id, scale), seed)


def of_cell(cell: Cell, seed: int = 0) -> dict[str, Any]:
    """The same of a cell that may have another sampler or gold reward."""
    scale = cell.scale.key
    score, level = BOUNDARY[cell.model.key] + 0.02 * (seed % 10), 0.0
    start = now = policy(f"{cell.model.key}-start", seed, level, score)
    rounds: list[dict[str, Any]] = []
    name = f"{cell.model.key}-{cell.row['key']}"
    for number, source in enumerate((source.key for source in cell.sources), 1):
        name, recorded = f"{name}-{source}", RATES[source == "off"]
        after = min(0.85, score + (0.3 if source == "off" else 0.15))
        gain = 1.2 - score if source == "off" else 0.4 + score
        rungs = []
        for rate in RATES if number == len(cell.sources) else (recorded,):
            reached = level + gain * (0.6 if rate < 2e-4 else 1.0)
            kl = (3 if source == "off" else 8) * rate / RATES[0]
            rungs.append(rung(name, seed, rate, now, End(reached, after, kl)))
        pairs = {"pairs": 128, "margin": 0.4, "ties": 2, "truncated": 5, "drops": {"equal texts": 3}}
        entry = {"round": number, "source": source, "learning_rate": recorded, "start": now}
        rounds.append(entry | {"rungs": rungs, "pairs": pairs})
        kept = next(one for one in rungs if one["learning_rate"] == recorded)
        now, score, level = kept["metrics"], after, level + gain * (0.6 if recorded < 2e-4 else 1.0)
    weights = "stand-in" if scale == "lab" else "random"
    return {
        "schema": SCHEMA, "state": "done", "reason": None, "cell": cell.id, "seed": seed, "scale": scale,
        "model": {"key": cell.model.key, "name": cell.model.name, "checkpoint": cell.checkpoint.source,
                  "stand_in_for": cell.checkpoint.stand_in_for, "weights": weights, "note": None},
        "method": plain(cell.method) | cell.row, "schedule": cell.schedule,
        "sources": [source.key for source in cell.sources], "preference": plain(cell.scale.preference),
        "scorers": {"gold": {"spearman": 0.71, "held_out": 200}, "oracle": {"spearman": 0.64, "held_out": 200}},
        "spec": plain(cell), "artifacts": {f"lab/{name}/policy": MADE}, "start": start, "rounds": rounds,
    }  # fmt: skip


def broken(cell_id: str, state: str, reason: str, seed: int = 0) -> dict[str, Any]:
    """A run that failed or was skipped before its first round."""
    made = result(cell_id, seed)
    model = {name: made["model"][name] for name in ("key", "name", "note")}
    left_out = {name: made[name] for name in made if name not in ("start", "preference", "scorers", "artifacts")}
    return left_out | {"state": state, "reason": reason, "rounds": [], "model": model}


def fill(
    folder: Path, models: tuple[str, ...] = ("zephyr",), methods: tuple[str, ...] = ("dpo",), seeds: int = 1
) -> None:
    """Writes every schedule of some models and methods."""
    for cell in registry.cells("lab"):
        if cell.model.key in models and cell.method.key in methods:
            for seed in range(seeds):
                write_result(folder, result(cell.id, seed))
