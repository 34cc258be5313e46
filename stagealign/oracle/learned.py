"""The preference oracle: scores candidates, ranks them into training pairs, counts the votes of a boundary measurement.

Training labels come from here and from nowhere else; the gold reward of `evaluate.py` is another model.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagealign.data.records import Candidate, by_prompt, prompt_hash, read_dicts, read_rows, write_rows
from stagealign.oracle.labels import to_pairs, to_votes
from stagealign.stats.finite import check_finite
from stagealign.stats.statistics import spearman
from stagealign.store.artifact import Work

Scorer = Callable[[Sequence[str]], list[float]]


def fit(work: Work) -> dict[str, Any]:
    """Builder of `oracle`: tf-idf of words and word pairs, ridge on human ratings; quality on held-out films."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    rows = list(read_dicts(work.inputs["ratings"] / "ratings.jsonl"))
    learn = [row for row in rows if row["split"] == "oracle"]
    held_out = [row for row in rows if row["split"] == "held_out"]
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    matrix = features.fit_transform([row["text"] for row in learn])
    ridge = Ridge(alpha=work.params["alpha"]).fit(matrix, [row["rating"] for row in learn])
    words = {word: int(place) for word, place in features.vocabulary_.items()}
    (work.out / "vocabulary.json").write_text(json.dumps(words, sort_keys=True), encoding="utf-8")
    np.savez(work.out / "ridge.npz", idf=features.idf_, coefficients=ridge.coef_, intercept=ridge.intercept_)
    scores = tfidf(work.out)([row["text"] for row in held_out])
    return {
        "learned_from": len(learn),
        "held_out": len(held_out),
        "spearman": spearman(scores, [row["rating"] for row in held_out]),
    }


def tfidf(folder: Path) -> Scorer:
    """Scorer that predicts the mean human rating, from -4 to 4."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    with np.load(folder / "ridge.npz", allow_pickle=False) as saved:
        idf, coefficients, intercept = saved["idf"], saved["coefficients"], float(saved["intercept"])
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=vocabulary)
    features.idf_ = idf
    return lambda texts: [float(x) for x in features.transform(texts) @ coefficients + intercept]


def fit_letters(work: Work) -> dict[str, Any]:
    """Builder of `oracle` at smoke scale: nothing to learn."""
    return {"spearman": None}


def letters(folder: Path) -> Scorer:
    """Scorer of the smoke: share of characters that are letters; means nothing."""
    return lambda texts: [sum(c.isalpha() for c in text) / max(1, len(text)) for text in texts]


SCORERS: dict[str, Callable[[Path], Scorer]] = {"tfidf": tfidf, "letters": letters}


def score(candidates: Sequence[Candidate], work: Work) -> list[float]:
    """Oracle score of each candidate, higher is better under the preference that is asked for."""
    scorer = SCORERS[work.params["oracle"]](work.inputs["oracle"])
    values = scorer([one.completion for one in candidates])
    prompts = [prompt_hash(one.prompt) for one in candidates]
    check_finite(
        values, prompts, f"oracle {work.params['oracle']!r}", "a score orders nothing then: look at the oracle"
    )
    return [work.params["sign"] * value for value in values]


def rank(work: Work) -> dict[str, Any]:
    """Builder of `pairs`: see `labels.to_pairs`."""
    file = work.inputs["candidates"] / "candidates.jsonl"
    candidates = read_rows(file, Candidate)
    scores = dict(zip(map(id, candidates), score(candidates, work), strict=True))
    pairs, facts = to_pairs(candidates, scores, str(file), "part" in work.params)
    write_rows(work.out / "pairs.jsonl", pairs)
    return facts


def votes(work: Work) -> dict[str, Any]:
    """Builder of `votes`: each prompt's on-policy completions against its static candidates, under the oracle."""
    on = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    off = by_prompt(read_rows(work.inputs["static"] / "candidates.jsonl", Candidate))
    flat = [candidate for group in off.values() for candidate in group]
    scores = {id(one): value for texts in (on, flat) for one, value in zip(texts, score(texts, work), strict=True)}
    rows = [
        to_votes(prompt, [scores[id(one)] for one in group], [scores[id(one)] for one in off[prompt]])
        for prompt, group in by_prompt(on).items()
    ]
    write_rows(work.out / "votes.jsonl", rows)
    return {"prompts": len(rows)}
