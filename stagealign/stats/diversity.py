"""Diversity of one prompt's candidates (n-grams, self-BLEU, embeddings), and agreement of its measures.

Pure functions of texts and vectors. A measure is None for a single candidate and for texts without words.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from stagealign.stats.statistics import Metric, spearman

Array = NDArray[np.float64]
MORE = {"distinct_2": 1, "self_bleu": -1, "embedding": 1, "surprise": 1, "surprise_gap": 1}
"""Measure of diversity -> 1 if a larger number means more of it, -1 if a smaller one does."""
ORDER = 4
"""Longest n-grams of BLEU."""
DECIDED = 1.96
"""Standard errors by which two sets must differ before one counts as more diverse."""


class Agreement(TypedDict):
    """Rank correlation of two measures over `n` prompts; `value` is None if one of the two is constant."""

    value: float | None
    n: int


class Concordance(TypedDict):
    """Comparisons that two measures decide alike, oppositely, or not both; and Kendall's tau of the decided ones.

    `tau` is None if no comparison is decided by both.
    """

    same: int
    opposite: int
    undecided: int
    tau: float | None


def words(text: str) -> list[str]:
    """Words and punctuation marks, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count of each run of `n` tokens."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the texts taken together; None without any.

    Falls with length, so texts of unequal length are not comparable by it alone. Source: Li et al. 2016, distinct-n.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts += ngrams(words(text), n)
    return len(counts) / counts.total() if counts else None


def bleu(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU of tokens, from 0 to 1: n-grams up to 4 or as long as the candidate is, smoothed, brevity penalty.

    A precision of 0 becomes 1 / (2^k x n-grams), k counting such orders; no word in common is 0. Source: Papineni et
    al. 2002; smoothing 3 of Chen and Cherry 2014, effective order, as sacrebleu's `sentence_bleu` does by default.
    """
    if not candidate:
        return 0.0
    halvings, logs = 0, []
    for n in range(1, min(ORDER, len(candidate)) + 1):
        ours = ngrams(candidate, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, n)
        matches = (ours & most).total()
        if matches == 0:
            if n == 1:
                return 0.0
            halvings += 1
        logs.append(math.log(matches / ours.total() if matches else 0.5**halvings / ours.total()))
    nearest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in references)[1]
    penalty = min(0.0, 1 - nearest / len(candidate))
    return math.exp(sum(logs) / len(logs) + penalty)


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU of each text against the others, from 0 to 1: high means alike. None for fewer than two texts.

    Source: Zhu et al. 2018 (Texygen), here among the candidates of one prompt.
    """
    if len(texts) < 2:
        return None
    split = [words(text) for text in texts]
    return sum(bleu(text, split[:i] + split[i + 1 :]) for i, text in enumerate(split)) / len(split)


def mean_distance(vectors: NDArray[Any]) -> float | None:
    """Mean cosine distance (0 alike, 1 unrelated, at most 2) over pairs of rows; None for fewer than two rows.

    Raises ValueError for a row without a direction.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if len(rows) < 2:
        return None
    lengths = np.linalg.norm(rows, axis=1)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("vectors: one has length 0 or is not finite, so it has no direction; check the encoder")
    rows = rows / lengths[:, None]
    return float(np.mean([max(0.0, 1 - a @ b) for a, b in combinations(rows, 2)]))


def rank_agreement(measures: Mapping[str, Mapping[str, float]]) -> dict[str, Agreement]:
    """Rank correlation over prompts of each two measures, as `a, b` -> {value, n}; positive if they agree on diversity.

    `measures` maps names of `MORE` to numbers by prompt hash. The value is None if one of the two is constant.
    """
    agreements: dict[str, Agreement] = {}
    for first, second in combinations([name for name in MORE if measures.get(name)], 2):
        shared = sorted(measures[first].keys() & measures[second].keys())
        ours, theirs = ([MORE[name] * measures[name][prompt] for prompt in shared] for name in (first, second))
        varies = len(set(ours)) > 1 and len(set(theirs)) > 1
        agreements[f"{first}, {second}"] = {"value": spearman(ours, theirs) if varies else None, "n": len(shared)}
    return agreements


def larger(first: Metric | Mapping[str, Any], second: Metric | Mapping[str, Any]) -> int | None:
    """1 if the first metric is larger, -1 if the second is larger, 0 if the difference is not significant.

    Both count as means over independent prompts; if they share prompts, this errs towards 0. None if one of them has no
    value or no standard error.
    """
    numbers = [metric.get(key) for metric in (first, second) for key in ("value", "standard_error")]
    if None in numbers:
        return None
    a, error_a, b, error_b = map(float, numbers)  # type: ignore[arg-type]
    return int(np.sign(a - b)) if abs(a - b) > DECIDED * math.hypot(error_a, error_b) else 0


def concordance(orders: Sequence[tuple[int, int]]) -> Concordance:
    """Agreement of two measures on the order of two sets, over comparisons, with Kendall's tau of the decided ones.

    `orders` has one entry per comparison: the sign that each measure gives it (1, -1, or 0 for undecided). Source:
    Kendall 1938.
    """
    same = sum(a * b > 0 for a, b in orders)
    opposite = sum(a * b < 0 for a, b in orders)
    tau = (same - opposite) / (same + opposite) if same + opposite else None
    return {"same": same, "opposite": opposite, "undecided": len(orders) - same - opposite, "tau": tau}
