"""Growth of time and peak memory with pairs, length, parameters and cells; ours only, each point in its own process.

All pairs have the same length, so that only the size under test changes. Whole runs are timed: tokenising, reference,
training. Cells share one start, one set of pairs and one reference, as in a grid.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed import models, sweep
from benchmarks.speed import pairs as source
from benchmarks.speed.training import SEED, Way, ours
from benchmarks.speed.turns import Given, Run, child, clock, exponent

PAIRS, LENGTH, CELL_PAIRS = 16, 64, 16
POINTS = {
    "pairs": (64, 256, 1024, 4096),
    "tokens": (64, 128, 256, 512, 1024, 2048),
    "parameters": ("1m", "4m", "14m", "60m", "160m"),
    "cells": (1, 4, 12, 36),
}
SMALL = {"pairs": (4, 8), "tokens": (16, 32), "parameters": ("1m", "4m"), "cells": (1, 2)}
SHAPES = {
    "1m": (8_192, 64, 2, 2),
    "4m": (16_384, 112, 4, 4),
    "14m": (50_304, 128, 6, 4),
    "60m": (50_304, 448, 8, 8),
    "160m": (50_304, 768, 12, 12),
}
"""Vocabulary, width, layers and heads."""
PATH = "benchmarks.speed.growth"


def measure(given: Given, growth: str) -> dict[str, Any]:
    """One point for each size, smallest first, and the exponents of time and memory."""
    points = []
    for size in (SMALL if given.small else POINTS)[growth]:
        runs = [child(f"{PATH}:{'cells' if growth == 'cells' else 'point'}", given, growth=growth, size=size)]
        points.append({"size": runs[0].pop("size"), **{k: v for k, v in runs[0].items() if k != "work"}})
    sizes = [point["size"] for point in points]
    exponents = {
        key: exponent(sizes, [point[key] for point in points]) for key in ("seconds", "cpu_seconds", "peak_mb")
    }
    fixed = {"pairs": PAIRS, "tokens": LENGTH, "shape": "14m", "cells": 1}
    return {"sizes": {k: v for k, v in fixed.items() if k != growth}, "points": points, "exponents": exponents}


def point(given: Given, growth: str, size: Any) -> Run:
    """Time of one training run at one size."""
    shape = size if growth == "parameters" else "14m"
    lm = _model(shape, given)
    pairs = source.exactly(lm, size if growth == "pairs" else PAIRS, size if growth == "tokens" else LENGTH, SEED)
    number = lm.model.num_parameters() if growth == "parameters" else size
    with tempfile.TemporaryDirectory() as folder, clock(given.device) as took:
        ours(lm, pairs, folder, given.device, Way(max_length=max(POINTS["tokens"])))
    return {**took, "size": number, "work": len(pairs)}


def _model(shape: str, given: Given) -> Any:
    if not given.small:
        vocabulary, width, layers, heads = SHAPES[shape]
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        return models.seeded({**sizes, "intermediate_size": 4 * width}, vocabulary, given)
    return models.seeded(models.THIN | {"hidden_size": 32 if shape == "1m" else 64}, 264, given)


def cells(given: Given, growth: str, size: int) -> Run:
    """Time to build `size` policies on one reference, through the store."""
    forms = list(sweep.FORMS)
    runs = [(forms[n % 2], round(0.05 * (1 + n // 2), 2), 0) for n in range(size)]
    with tempfile.TemporaryDirectory() as folder:
        run = sweep.build(given, 4 if given.small else CELL_PAIRS, Path(folder), runs)
    return {**run, "size": size}
