"""AlpacaEval 2's published leaderboard with recorded preferences of some models, and the prior learned from both."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stagealign.evaluate.alpaca_eval.length_control import Array, LengthPrior, LengthWeights, features, score

NEEDED = ("gpt4_turbo_preferences.parquet", "instruction_difficulty.csv", "glm_weights.csv", "leaderboard.csv")


def data_folder() -> Path:
    """Folder of AlpacaEval's data beside the project; `STAGEALIGN_SHARED` names another parent."""
    shared = Path(os.environ.get("STAGEALIGN_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
    return shared / "data" / "alpaca_eval"


@dataclass(frozen=True, eq=False)
class Published:
    """One model of the leaderboard."""

    model: str
    lc_win_rate: float
    lc_standard_error: float
    """NaN if not published."""
    weights: LengthWeights
    outcomes: Array
    """[n] in [0, 1]."""
    rows: Array
    """[n, 3] features, with the difficulty looked up by prompt."""
    official_rows: Array
    """[n, 3] features of the official function, which gives row k the difficulty of prompt k, whatever its prompt."""
    missing: int


def read(folder: Path) -> list[Published]:
    """Models with recorded preferences and published weights."""
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
    """Least-squares prior under which each model's published weights are optimal for its own rows.

    At an optimum, the penalty's gradient is minus the score of the rows, for both weights of each model; this is linear
    in the five unknown numbers. The base weight has no gamed row here, so its score is the official L1 penalty alone;
    the pull is the mean size of that score.
    """
    weights = np.array([[model.weights.length, model.weights.difficulty] for model in models])
    scores = np.array([score(model.official_rows, model.outcomes, model.weights) for model in models])
    ones, zeros = np.ones(len(models)), np.zeros(len(models))
    for_length = np.stack([weights[:, 0], weights[:, 1], zeros, ones, zeros], axis=1)
    for_difficulty = np.stack([zeros, weights[:, 0], weights[:, 1], zeros, ones], axis=1)
    wanted = -np.concatenate([scores[:, 0], scores[:, 1]])
    length, both, difficulty, *slope = np.linalg.lstsq(np.concatenate([for_length, for_difficulty]), wanted)[0].tolist()
    curvature = ((length, both), (both, difficulty))
    assert np.linalg.eigvalsh(curvature).min() > 0, f"not a penalty: {curvature}"
    return LengthPrior(curvature, (slope[0], slope[1]), float(np.abs(scores[:, 2]).mean()))
