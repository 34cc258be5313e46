"""Win rates and length-controlled (LC) win rates of every generator in a file of judged comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagealign.evaluate.alpaca_eval.comparisons import (
    JudgedComparison,
    read_comparisons,
    read_difficulty,
    read_weights,
)

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.length_control import LengthWeights

PUBLISHED, FITTED, OFFICIAL = "published weights", "fitted", "official function"
NOT_THEIRS = "fitted; the published weights of this name are of other rows"
NOTHING = "no judged rows"
BESIDE = "glm_weights.csv"
"""File with published weights, in the folder of the difficulty file."""
SAME_WIN_RATE, SAME_LC = 0.1, 0.5
"""Largest differences, in points, of win rate and LC win rate at which published weights are taken as fitted on the
same rows. At the optimum the mean probability is the win rate up to the L1 penalty, at most 0.05 points on 29 models.
Our own fit is within 0.2 points of published values.
"""


@dataclass(frozen=True)
class LcWinRate:
    """Win rates and errors of one generator, in percent; None if there are too few judged rows."""

    generator: str
    n: int
    """Judged rows: the denominator of both win rates."""
    failed: int
    """Rows without a preference; in no denominator."""
    missing: int
    """Prompts of the difficulty file without a row; in no denominator."""
    win_rate: float | None
    standard_error: float | None
    """Standard error of the win rate as a mean over prompts; the leaderboard's column of this name."""
    lc_win_rate: float | None
    lc_standard_error: float | None
    """Official error, for exact weights: standard deviation of the probabilities at equal length over sqrt(n)."""
    lc_sampling_error: float | None
    """Standard error over draws of the prompts, with refitted weights; None for weights that were not fitted here."""
    method: str
    official_lookup: float | None
    """LC win rate with difficulties joined by row position, as in the official function; None if equal to a join by
    prompt. Published values of generators that miss prompts are of this kind. They can be points away from our fit,
    which joins by prompt."""


def lc_win_rates(
    preferences: str | Path,
    difficulty: str | Path,
    weights: str | Path | None = None,
    fit_all: bool = False,
    use_official: bool = False,
) -> list[LcWinRate]:
    """One LcWinRate for each generator of a file of comparisons, in the file's order.

    `weights`: published weights in the official format; the default is `glm_weights.csv` in the folder of the
    difficulty file, if it exists. A generator whose rows agree with its published weights gets the published value;
    all others are fitted. `fit_all` fits every generator. `use_official` calls alpaca_eval's function, which needs the
    hub. Raises BadData, CannotRun.
    """
    from stagealign.evaluate.alpaca_eval.length_control import LengthWeights

    difficulties = read_difficulty(str(difficulty))
    beside = Path(difficulty).expanduser().with_name(BESIDE)
    chosen = weights if weights is not None else beside if beside.is_file() else None
    given = {} if chosen is None or fit_all or use_official else read_weights(str(chosen))
    published = {name: LengthWeights(*numbers) for name, numbers in given.items()}
    comparisons = read_comparisons(str(preferences), difficulties)
    return [
        _measured(name, rows, difficulties, published.get(name), use_official) for name, rows in comparisons.items()
    ]


def _measured(
    generator: str,
    every: Sequence[JudgedComparison],
    difficulties: Mapping[int, float],
    published: "LengthWeights | None",
    use_official: bool,
) -> LcWinRate:
    from stagealign.stats.statistics import mean_metric

    rows = [row for row in every if row.preference is not None]
    counts: dict[str, Any] = {"n": len(rows), "failed": len(every) - len(rows)}
    counts["missing"] = len(difficulties) - len(every)
    nothing: dict[str, Any] = dict.fromkeys(_NUMBERS)
    if not rows:
        return LcWinRate(generator, **counts, **nothing, method=NOTHING)
    won = mean_metric([100 * (row.preference - 1) for row in rows if row.preference is not None], "percent")
    plain = {"win_rate": won["value"], "standard_error": won["standard_error"]}
    if use_official:
        from stagealign.evaluate.alpaca_eval.official_lc import official

        triples = [
            (math.nan if row.preference is None else row.preference, int(row.baseline_chars), int(row.model_chars))
            for row in every
        ]
        value, error = official(triples, generator)
        numbers = nothing | {"lc_win_rate": value, "lc_standard_error": error}
        return LcWinRate(generator, **counts, **(numbers | plain), method=OFFICIAL)
    return LcWinRate(generator, **counts, **plain, **_controlled(every, difficulties, published, won["value"]))


_NUMBERS = ("win_rate", "standard_error", "lc_win_rate", "lc_standard_error", "lc_sampling_error", "official_lookup")


def _controlled(
    every: Sequence[JudgedComparison],
    difficulties: Mapping[int, float],
    published: "LengthWeights | None",
    win_rate: float,
) -> dict[str, Any]:
    """Length-controlled fields of one generator, from its published weights if they belong to its rows, else fitted."""
    import numpy as np

    from stagealign.evaluate.alpaca_eval.length_control import LEARNED, fit, length_controlled, sampling_error, score

    judged = np.array([row.preference is not None for row in every])
    outcomes = np.array([row.preference - 1 for row in every if row.preference is not None])
    joined = _features(every, [difficulties[row.prompt_index] for row in every])[judged]
    by_place = _features(every, list(difficulties.values())[: len(every)])
    prior = LEARNED.for_rows(len(outcomes))
    own = fit(joined, outcomes, prior)
    chances, error = length_controlled(own, joined[:, 1]), sampling_error(joined, outcomes, own, prior)
    method, lookup = FITTED, None
    if not np.array_equal(joined, by_place[judged]):
        lookup = float(length_controlled(fit(by_place[judged], outcomes), by_place[:, 1]).mean())
    if published is not None:
        theirs = length_controlled(published, by_place[:, 1])
        off = 100 * abs(score(by_place[judged], outcomes, published)[2]) / len(outcomes)
        near = float(chances.mean()) if lookup is None else lookup
        if off <= SAME_WIN_RATE and abs(float(theirs.mean()) - near) <= SAME_LC:
            chances, method, error = theirs, PUBLISHED, math.inf
            lookup = None if lookup is None else float(theirs.mean())
        else:
            method = NOT_THEIRS
    spread = float(chances.std(ddof=1) / math.sqrt(len(chances))) if len(chances) > 1 else None
    return {
        "lc_win_rate": float(chances.mean()),
        "lc_standard_error": spread,
        "lc_sampling_error": error if math.isfinite(error) else None,
        "method": method,
        "official_lookup": lookup,
    }


def _features(rows: Sequence[JudgedComparison], difficulty: Sequence[float]) -> Any:
    from stagealign.evaluate.alpaca_eval.length_control import features

    return features([row.baseline_chars for row in rows], [row.model_chars for row in rows], difficulty)
