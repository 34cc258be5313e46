"""The meter on AlpacaEval 2's recorded GPT-4-turbo preferences: each model in turn is "the policy".

A completion's score is the recorded preference for it against the common baseline. The static source is all other
recorded models: either all of them on every prompt, or two for each prompt, as in the meter, drawn with a fixed seed.
Only scores are printed or kept, and no row of the data.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagealign.stats.decision import Decision
from stagealign.stats.votes import boundary_score, cross_votes

Votes = list[tuple[float, float]]


def data_folder() -> Path | str:
    """Folder of the recorded preferences, or the reason why there is none."""
    shared = Path(os.environ.get("STAGEALIGN_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
    folder = shared / "data" / "alpaca_eval"
    names = ("gpt4_turbo_preferences.parquet", "leaderboard.csv")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"no {' and '.join(missing)} in data/alpaca_eval under STAGEALIGN_SHARED (default: ../shared)"
    return folder


def measure(folder: Path, seed: int, orders: int, static: int | None) -> dict[str, Any]:
    """Scores of the 29 models, their rank correlation with published win rates, and decisions over shuffled prompts.

    `static`: static candidates drawn for each prompt; None for all other models. `orders`: random orders of the prompts
    for each model. A decision ends at the first named stage; it is wrong if the score over all prompts names another.
    """
    table = pd.read_parquet(folder / "gpt4_turbo_preferences.parquet")
    preferences = table.pivot(index="prompt_index", columns="generator", values="preference")
    published = pd.read_csv(folder / "leaderboard.csv", index_col=0)["win_rate"]
    most_votes = static or preferences.shape[1] - 1
    models = []
    for place, model in enumerate(preferences.columns):
        rng = np.random.default_rng([seed, place])
        votes, ties = _votes(preferences, model, rng, static)
        whole = boundary_score(votes)
        named = [_decide([votes[at] for at in rng.permutation(len(votes))], most_votes) for _ in range(orders)]
        right = "fine-tuning" if whole.score >= 0.5 else "injection"
        decided = [prompts for stage, prompts in named if stage != "undecided"]
        models.append(
            {
                "model": model,
                "win_rate": float(published[model]),
                "score": whole.score,
                "interval": list(whole.interval),
                "stage": whole.stage,
                "prompts": whole.prompts,
                "tied": ties / sum(on + off for on, off in votes),
                "orders": orders,
                "decided": len(decided),
                "wrong": sum(stage not in (right, "undecided") for stage, _ in named),
                "median_prompts": float(np.median(decided)) if decided else None,
            }
        )
    scores = pd.DataFrame(models)
    return {
        "static_candidates": static or "all others",
        "spearman": float(scores["score"].rank().corr(scores["win_rate"].rank())),
        "orders": len(models) * orders,
        "decided_orders": int(scores["decided"].sum()),
        "wrong_orders": int(scores["wrong"].sum()),
        "models": sorted(models, key=lambda row: float(row["win_rate"])),
    }


def _votes(preferences: pd.DataFrame, model: str, rng: np.random.Generator, static: int | None) -> tuple[Votes, int]:
    """Votes of each prompt for which the model and enough others have a score, and how many comparisons tied."""
    others = preferences.drop(columns=model).to_numpy()
    votes, ties = [], 0
    for score, pool in zip(preferences[model].to_numpy(), others, strict=True):
        scored = pool[~np.isnan(pool)]
        if np.isnan(score) or len(scored) < (static or 1):
            continue
        drawn = scored if static is None else rng.choice(scored, static, replace=False)
        on, off, tied = cross_votes([score], drawn.tolist())
        votes.append((on, off))
        ties += tied
    return votes, ties


def _decide(votes: Votes, most_votes: int) -> tuple[str, int]:
    """(stage, prompts used) of the sequential decision; `undecided` if all prompts do not suffice."""
    decision = Decision(most_votes)
    for on, off in votes:
        if decision.update(on, off) != "undecided":
            break
    return decision.stage, decision.prompts
