"""AlpacaEval 2's published leaderboard with the recorded preferences of some of its models, and the prior from both."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stagealign.evaluate.alpaca_eval.length_control import Array, LengthPrior, LengthWeights, features, score

NEEDED = ("gpt4_turbo_preferences.parquet", "instruction_difficulty.csv", "glm_weights.csv", "leaderboard.csv")


def data_folder() -> Path:
    """Where the data lies that is beside the project, never in it; `STAGEALIGN_SHARED` moves it."""
    shared = Path(os.environ.get("STAGEALIGN_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
    return shared / "data" / "alpaca_eval"


@dataclass(frozen=True, eq=False)
class Published:
    """One model of the leaderboard."""

    model: str
    lc_win_rate: float
    lc_standard_error: float
    """NaN where none is published."""
    weights: LengthWeights
    outcomes: Array
    """[n] in [0, 1]."""
    rows: Array
    """[n, 3] features, the difficulty joined by prompt."""
    official_rows: Array
    """[n, 3] as the official function builds them: row k has the difficulty of prompt k, whichever prompt it is."""
    missing: int


def read(folder: Path) -> list[Published]:
    """All models with preferences and published weights."""
    preferences = pd.read_parquet(folder / NEEDED[0]).sort_values(["generator", "prompt_index"])
    difficulty = pd.read_csv(folder / NEEDED[1], index_col=0)["instruction_difficulty"].sort_index()
    weights, leaderboard = (pd.read_csv(folder / name, index_col=0) for name in NEEDED[2:])
    models = []
    for model, table in preferences.groupby("generator"):
        chars = table["baseline_chars"].to_numpy(), table["model_chars"].to_numpy()
        row = leaderboard.loc[model]
        models.append(
            Published(
                model=str(model),
                lc_win_rate=float(row["length_controlled_winrate"]),
                lc_standard_error=float(row["lc_standard_error"]),
                weights=LengthWeights(*weights.loc[model].tolist()),
                outcomes=table["preference"].to_numpy() - 1,
                rows=features(*chars, difficulty.loc[table["prompt_index"]].to_numpy()),
                official_rows=features(*chars, difficulty.to_numpy()[: len(table)]),
                missing=len(difficulty) - len(table),
            )
        )
    return models


def learn(models: Sequence[Published]) -> LengthPrior:
    """The prior that best balances each model's own rows at its published weights.

    Penalty gradient = minus the score of the own rows, both weights of each model: linear in the five unknown numbers.
    The base weight meets no gamed row, so its score is the official L1 penalty alone; the pull is its mean size.
    """
    weights = np.array([[model.weights.length, model.weights.difficulty] for model in models])
    scores = np.array([score(model.official_rows, model.outcomes, model.weights) for model in models])
    one, none = np.ones(len(models)), np.zeros(len(models))
    for_length = np.stack([weights[:, 0], weights[:, 1], none, one, none], axis=1)
    for_difficulty = np.stack([none, weights[:, 0], weights[:, 1], none, one], axis=1)
    wanted = -np.concatenate([scores[:, 0], scores[:, 1]])
    length, both, difficulty, *slope = np.linalg.lstsq(np.concatenate([for_length, for_difficulty]), wanted)[0].tolist()
    curvature = ((length, both), (both, difficulty))
    assert np.linalg.eigvalsh(curvature).min() > 0, f"not a penalty: {curvature}"
    return LengthPrior(curvature, (slope[0], slope[1]), float(np.abs(scores[:, 2]).mean()))
