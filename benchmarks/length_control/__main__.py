"""`python -m benchmarks.length_control [--data DIR] [--write]`: cross-validates the offline length-controlled win rate
over models and writes `results/length_control/`; with `--write`, also writes the learned constants into the package."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.length_control.published import NEEDED, Published, data_folder, learn, read
from stagealign.evaluate.alpaca_eval.length_control import (
    LEARNED,
    PLAIN,
    LengthPrior,
    fit,
    length_controlled,
    sampling_error,
)

ROOT = Path(__file__).resolve().parents[2]
PRIOR = ROOT / "stagealign" / "evaluate" / "alpaca_eval" / "length_prior.py"
SEED = 20250814
FOLDS = 5
DRAWS = 10
CONSTANTS = '''\
"""What the hub-only rows of the official length-controlled model do to its weights, learned from published ones.

Written by `python -m benchmarks.length_control --write`; see `LengthPrior` in `length_control.py` for what they are.
"""

CURVATURE = (({0!r}, {1!r}), ({1!r}, {2!r}))
SLOPE = ({3!r}, {4!r})
BASE_PULL = {5!r}
'''

Learn = Callable[[Published], LengthPrior]


def main() -> None:
    """Measures, prints and writes the cross-validation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with " + ", ".join(NEEDED))
    parser.add_argument("--write", action="store_true", help=f"also write the constants into {PRIOR.name}")
    given = parser.parse_args()
    missing = [name for name in NEEDED if not (given.data / name).is_file()]
    if missing:
        raise SystemExit(f"{given.data}: no {', '.join(missing)}; name the folder with --data")
    models = read(given.data)
    whole = learn(models)
    if given.write:
        PRIOR.write_text(constants(whole), encoding="utf-8")
    folder = ROOT / "results" / "length_control"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "seed": SEED,
        "summary": summaries(models),
        "parts": parts(models),
        "models": per_model(models),
    }
    (folder / "cross_validation.json").write_text(
        json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    for name in ("summary", "parts", "models"):
        show(results[name])
    print(f"learned here:  {whole}\nin the package: {LEARNED}")


def constants(prior: LengthPrior) -> str:
    """Source text of `length_prior.py`, with three decimals; rounding moves win rates by less than 0.001 points."""
    (length, both), (_, difficulty) = prior.curvature
    return CONSTANTS.format(*(round(x, 3) for x in (length, both, difficulty, *prior.slope, prior.base_pull)))


def without(models: Sequence[Published]) -> Learn:
    """Function from a model to the prior learned from all others (leave-one-out)."""
    return lambda model: learn([other for other in models if other is not model])


def folds(models: Sequence[Published], seed: int = SEED) -> Learn:
    """Function from a model to the prior learned from the other ones of `FOLDS` random folds."""
    order = np.random.default_rng(seed).permutation(len(models))
    fold = {models[at].model: place % FOLDS for place, at in enumerate(order)}
    return lambda model: learn([other for other in models if fold[other.model] != fold[model.model]])


def error(model: Published, prior: LengthPrior, by_row: bool = False) -> float:
    """Our LC win rate minus the published one, in points; `by_row`: with the official function's difficulties."""
    rows = model.official_rows if by_row else model.rows
    return float(length_controlled(fit(rows, model.outcomes, prior), rows[:, 1]).mean()) - model.lc_win_rate


def summaries(models: Sequence[Published]) -> list[dict[str, Any]]:
    """Errors of each way to learn the prior, over all models or over those with every prompt."""
    complete = [model for model in models if not model.missing]
    alone, folded = without(models), folds(models)
    ways: list[tuple[str, Sequence[Published], Callable[[Published], float]]] = [
        ("leave-one-out", models, lambda m: error(m, alone(m))),
        ("leave-one-out, complete models", complete, lambda m: error(m, alone(m))),
        ("leave-one-out, official lookup", models, lambda m: error(m, alone(m), by_row=True)),
        (f"{FOLDS} folds", models, lambda m: error(m, folded(m))),
        ("learned from 5 other models", models, lambda m: error(m, few(models, m, 5))),
        ("package's constants", models, lambda m: error(m, LEARNED)),
        ("no prior", models, lambda m: error(m, PLAIN)),
        ("no prior, complete models", complete, lambda m: error(m, PLAIN)),
    ]
    return [summary(way, [measured(model) for model in chosen]) for way, chosen, measured in ways]


def parts(models: Sequence[Published]) -> list[dict[str, Any]]:
    """Errors of the LC win rate on a random share of the prompts, against all prompts: in points and sampling errors.

    `expected`: root mean square in sampling errors for draws without replacement, if sampling errors were exact.
    """
    rows = []
    for share in (0.5, 0.25, 0.1):
        draws = np.array([subsampled(model, share, draw) for model in models for draw in range(DRAWS)])
        errors = {"mean_absolute": float(np.abs(draws[:, 0]).mean()), "bias": float(draws[:, 0].mean())}
        ratio = {"in_sampling_errors": float(np.sqrt(((draws[:, 0] / draws[:, 1]) ** 2).mean()))}
        rows.append({"share": share, **errors, **ratio, "expected": float(np.sqrt(1 - share))})
    return rows


def few(models: Sequence[Published], model: Published, count: int) -> LengthPrior:
    """Prior learned from `count` other models drawn at random."""
    others = [other for other in models if other is not model]
    rng = np.random.default_rng([SEED, models.index(model)])
    return learn([others[at] for at in rng.choice(len(others), count, replace=False)])


def subsampled(model: Published, share: float, draw: int) -> tuple[float, float]:
    """(LC win rate of a random share of the prompts minus that of all, its sampling error), in points."""
    rng = np.random.default_rng([SEED, draw, *model.model.encode()])
    chosen = np.sort(rng.choice(len(model.outcomes), int(share * len(model.outcomes)), replace=False))
    rows, outcomes = model.rows[chosen], model.outcomes[chosen]
    prior = LEARNED.for_rows(len(outcomes))
    weights = fit(rows, outcomes, prior)
    part = length_controlled(weights, rows[:, 1]).mean()
    whole = length_controlled(fit(model.rows, model.outcomes), model.rows[:, 1]).mean()
    return float(part - whole), sampling_error(rows, outcomes, weights, prior)


def summary(way: str, errors: Sequence[float]) -> dict[str, Any]:
    values = np.array(errors)
    return {
        "way": way,
        "models": len(values),
        "mean_absolute": float(np.abs(values).mean()),
        "bias": float(values.mean()),
        "root_mean_square": float(np.sqrt((values**2).mean())),
        "largest": float(np.abs(values).max()),
    }


def per_model(models: Sequence[Published]) -> list[dict[str, Any]]:
    """Leave-one-out error of each model, with our two standard errors and the published one."""
    rows = []
    for model in models:
        prior = without(models)(model)
        weights = fit(model.rows, model.outcomes, prior)
        chances = length_controlled(weights, model.rows[:, 1])
        known = model.lc_standard_error == model.lc_standard_error
        rows.append(
            {
                "model": model.model,
                "missing": model.missing,
                "published": model.lc_win_rate,
                "error": float(chances.mean()) - model.lc_win_rate,
                "error_official_lookup": error(model, prior, by_row=True),
                "lc_standard_error": float(chances.std(ddof=1) / np.sqrt(len(chances))),
                "published_lc_standard_error": model.lc_standard_error if known else None,
                "lc_sampling_error": sampling_error(model.rows, model.outcomes, weights, prior),
            }
        )
    return sorted(rows, key=lambda row: float(row["published"]))


def show(rows: Sequence[dict[str, Any]]) -> None:
    cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    print()
    for row in cells:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
