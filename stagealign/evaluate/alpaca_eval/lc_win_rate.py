"""Win rates and length-controlled (LC) win rates of every generator in a file of judged comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagealign.base.errors import BadData
from stagealign.base.words import listed
from stagealign.data.formats import EXAMPLES
from stagealign.data.preference_scale import scale_named
from stagealign.evaluate.alpaca_eval.comparisons import GeneratorRows, JudgedComparison, read_comparisons, read_weights
from stagealign.evaluate.alpaca_eval.difficulty import Difficulties, read_difficulty

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.length_control import LengthWeights

PUBLISHED, FITTED, OFFICIAL = "published weights", "fitted", "official function"
NOT_THEIRS = "fitted; the published weights of this name are of other rows"
BY_ROW = "fitted; the published value has difficulties of other prompts in it"
NOTHING = "no judged rows"
NO_DIFFICULTY = "fitted without difficulties"
SHORT_METHODS = {
    PUBLISHED: "publ.",
    FITTED: "fit",
    OFFICIAL: "call",
    NOT_THEIRS: "fit*",
    BY_ROW: "fit+",
    NO_DIFFICULTY: "fit-",
    NOTHING: "-",
}
"""Methods as a table shows them."""
BESIDE = "glm_weights.csv"
"""File with published weights, in the folder of the difficulty file."""
SAME_WIN_RATE, SAME_LC = 0.1, 0.5
"""Largest differences, in points, of win rate and LC win rate at which published weights are taken as fitted on the
same rows. At the optimum the mean probability is the win rate up to the L1 penalty, at most 0.05 points on 29 models.
Our own fit is within 0.2 points of published values.
"""
FAILURES_ALLOWED = 0.01
"""Share of judgments that failed, or of prompts that are missing, above which a rate is called unreliable, and up to
which published weights can be of the same rows."""


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
    """Official error, for exact weights: standard deviation of the probabilities at equal length over sqrt(n); None
    without difficulties."""
    lc_sampling_error: float | None
    """Standard error over draws of the prompts, with refitted weights; None for weights that were not fitted here."""
    method: str
    official_lookup: float | None
    """LC win rate with difficulties joined by row position, as in the official function; None if equal to a join by
    prompt. It is the published value for a generator that misses prompts, and can be points away from the join."""
    difficulty: str = "by prompt_index"
    """How difficulties were joined: `by prompt`, `by prompt_index` if rows do not name their prompts, or `left out`."""
    failures: tuple[str, ...] = ()
    """Reasons of failed judgments, with counts and rows."""
    missing_prompts: tuple[str, ...] = ()
    """The first few prompts of the difficulty file without a row."""
    warnings: tuple[str, ...] = ()
    """Reasons why a rate is unreliable or the LC win rate not to be used."""


def lc_win_rates(
    preferences: str | Path,
    difficulty: str | Path | None = None,
    weights: str | Path | None = None,
    fit_all: bool = False,
    use_official: bool = False,
    preference_scale: str | None = None,
) -> list[LcWinRate]:
    """One LcWinRate for each generator of a file of comparisons, in the file's order.

    Difficulties are joined by prompt. Without a difficulty file, or if it has none of the file's prompts, their term is
    left out of the model. `weights`: published weights in the official format; the default is `glm_weights.csv` in the
    folder of the difficulty file, if it exists. A complete generator whose rows agree with its published weights gets
    the published value; all others are fitted. `fit_all` fits every generator. `use_official` calls alpaca_eval's
    function, which needs the hub. `preference_scale`: `1-2` or `0-1`; the default is to find it. Raises BadData, also
    if only some prompts have a difficulty, and CannotRun.
    """
    scale = None if preference_scale is None else scale_named(preference_scale, "--preference-scale")
    comparisons = read_comparisons(str(preferences), scale)
    known = _difficulties(preferences, comparisons, difficulty)
    fitted = known is None or fit_all or use_official
    published = {} if fitted else _published(weights, difficulty)
    return [_measured(name, rows, known, published.get(name), use_official) for name, rows in comparisons.items()]


def _published(weights: str | Path | None, difficulty: str | Path | None) -> "dict[str, LengthWeights]":
    """Published weights by generator, of the file named or of the one beside the difficulties; empty without one."""
    from stagealign.evaluate.alpaca_eval.length_control import LengthWeights

    beside = None if difficulty is None else Path(difficulty).expanduser().with_name(BESIDE)
    chosen = weights if weights is not None else beside if beside is not None and beside.is_file() else None
    if chosen is None:
        return {}
    return {name: LengthWeights(*numbers) for name, numbers in read_weights(str(chosen)).items()}


def _difficulties(
    source: str | Path, comparisons: Mapping[str, GeneratorRows], file: str | Path | None
) -> Difficulties | None:
    """Difficulties of the file's prompts; None if it has none of them. Raises BadData if it has only some."""
    if file is None:
        return None
    difficulties = read_difficulty(str(file))
    prompts = {prompt.identity: prompt for given in comparisons.values() for prompt in given.prompts}
    without = [prompt for prompt in prompts.values() if difficulties.of(prompt) is None]
    if without and (len(without) < len(prompts) or any(prompt.hash is None for prompt in without)):
        numbers = difficulties.by_index
        span = f": {min(numbers)} to {max(numbers)}" if numbers else ""
        raise BadData(
            f"{source}: {len(without)} prompts have no difficulty: prompt_index "
            f"{listed(sorted(map(str, without)))}; the difficulty file has {len(difficulties)} prompts{span}; leave "
            "these prompts out, or leave --difficulty out to fit all without that term"
        )
    return None if without else difficulties


def _measured(
    generator: str,
    given: GeneratorRows,
    difficulties: Difficulties | None,
    published: "LengthWeights | None",
    use_official: bool,
) -> LcWinRate:
    from stagealign.stats.statistics import mean_metric

    judged = [row.preference for row in given.rows if row.preference is not None]
    failed = given.failures.drops.total()
    missing = _missing(given, difficulties)
    common: dict[str, Any] = {
        "n": len(judged),
        "failed": failed,
        "missing": len(missing),
        "failures": tuple(str(given.failures).split("; ")) if failed else (),
        "missing_prompts": tuple(missing[:EXAMPLES]),
        "difficulty": _joined_how(given, difficulties),
    }
    warnings = _unreliable(len(judged), failed)
    nothing: dict[str, Any] = dict.fromkeys(_NUMBERS)
    if not judged:
        return LcWinRate(generator, **nothing, method=NOTHING, **common, warnings=warnings)
    won = mean_metric([100 * (preference - 1) for preference in judged], "percent")
    plain = {"win_rate": won["value"], "standard_error": won["standard_error"]}
    if use_official:
        numbers: dict[str, Any] = nothing | _official(generator, given.rows) | plain | {"method": OFFICIAL}
    else:
        numbers = plain | _controlled(given.rows, difficulties, published)
    return LcWinRate(generator, **numbers, **common, warnings=(*_few(judged), *warnings))


_NUMBERS = ("win_rate", "standard_error", "lc_win_rate", "lc_standard_error", "lc_sampling_error", "official_lookup")


def _missing(given: GeneratorRows, difficulties: Difficulties | None) -> list[str]:
    """Prompts of the difficulty file without a row of this generator, as text; those without a number by their hash."""
    if difficulties is None:
        return []
    if not difficulties.by_hash:
        numbers = {prompt.number for prompt in given.prompts}
        return [str(index) for index in difficulties.by_index if index not in numbers]
    hashes = {prompt.hash for prompt in given.prompts}
    return [name for name in difficulties.by_hash if name not in hashes]


def _joined_how(given: GeneratorRows, difficulties: Difficulties | None) -> str:
    if difficulties is None:
        return "left out"
    return "by prompt_index" if any(prompt.hash is None for prompt in given.prompts) else "by prompt"


def _unreliable(n: int, failed: int) -> tuple[str, ...]:
    if failed <= FAILURES_ALLOWED * (n + failed):
        return ()
    return (f"unreliable: {failed} of {n + failed} judgments failed, more than {FAILURES_ALLOWED:.0%}",)


def _few(preferences: Sequence[float]) -> tuple[str, ...]:
    import numpy as np

    from stagealign.evaluate.alpaca_eval.length_control import too_few

    reason = too_few(np.array(preferences) - 1)
    return () if reason is None else (f"LC is not usable: {reason}",)


def _official(generator: str, rows: Sequence[JudgedComparison]) -> dict[str, float]:
    from stagealign.evaluate.alpaca_eval.official_lc import official

    triples = [
        (math.nan if row.preference is None else row.preference, int(row.baseline_chars), int(row.model_chars))
        for row in rows
    ]
    value, error = official(triples, generator)
    return {"lc_win_rate": value, "lc_standard_error": error}


def _controlled(
    every: Sequence[JudgedComparison], difficulties: Difficulties | None, published: "LengthWeights | None"
) -> dict[str, Any]:
    """Length-controlled fields of one generator, from its published weights if they belong to its rows, else fitted."""
    import numpy as np

    from stagealign.evaluate.alpaca_eval.length_control import LEARNED, fit, length_controlled, sampling_error, score

    judged = np.array([row.preference is not None for row in every])
    outcomes = np.array([row.preference - 1 for row in every if row.preference is not None])
    values = [0.0 if difficulties is None else difficulties.of(row.prompt) for row in every]
    joined = _features(every, [0.0 if value is None else value for value in values])[judged]
    prior = LEARNED.for_rows(len(outcomes))
    own = fit(joined, outcomes, prior, difficulties is not None)
    chances = length_controlled(own, joined[:, 1])
    error = sampling_error(joined, outcomes, own, prior, difficulties is not None)
    method, lookup = FITTED if difficulties is not None else NO_DIFFICULTY, None
    by_place = None if difficulties is None else _by_place(every, difficulties)
    if by_place is not None and not np.array_equal(joined, by_place[judged]):
        lookup = float(length_controlled(fit(by_place[judged], outcomes), by_place[:, 1]).mean())
    if published is not None and difficulties is not None and by_place is not None:
        theirs = length_controlled(published, by_place[:, 1])
        off = 100 * abs(score(by_place[judged], outcomes, published)[2]) / len(outcomes)
        near = float(chances.mean()) if lookup is None else lookup
        whole = len(every) >= (1 - FAILURES_ALLOWED) * len(difficulties)
        if not (whole and off <= SAME_WIN_RATE and abs(float(theirs.mean()) - near) <= SAME_LC):
            method = NOT_THEIRS
        elif lookup is None:
            chances, method, error = theirs, PUBLISHED, math.inf
        else:
            method, lookup = BY_ROW, float(theirs.mean())
    several = len(chances) > 1 and difficulties is not None  # without them all prompts have the same probability
    spread = float(chances.std(ddof=1) / math.sqrt(len(chances))) if several else None
    return {
        "lc_win_rate": float(chances.mean()),
        "lc_standard_error": spread,
        "lc_sampling_error": error if math.isfinite(error) else None,
        "method": method,
        "official_lookup": lookup,
    }


def _by_place(every: Sequence[JudgedComparison], difficulties: Difficulties) -> Any:
    """Features as the official function has them: the k-th difficulty for the k-th row in the order of the prompts.

    None for prompts that only one of the two files numbers, which that function could not read.
    """
    if not difficulties.by_index or any(row.prompt.number is None for row in every):
        return None
    return _features(every, list(difficulties.by_index.values())[: len(every)])


def _features(rows: Sequence[JudgedComparison], difficulty: Sequence[float]) -> Any:
    from stagealign.evaluate.alpaca_eval.length_control import features

    return features([row.baseline_chars for row in rows], [row.model_chars for row in rows], difficulty)
