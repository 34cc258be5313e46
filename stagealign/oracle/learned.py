"""Oracles that are fitted here: a tf-idf ridge on human ratings, and the share of letters for the smoke scale."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from stagealign.data.records import prompt_hash, read_dicts
from stagealign.scoring.contest import Contest, Judged
from stagealign.stats.finite import check_finite
from stagealign.stats.statistics import spearman
from stagealign.store.artifact import Facts, Identity, Work

Scorer = Callable[[Sequence[str]], list[float]]
"""Texts to scores, one each; higher is better."""


def fit(work: Work) -> Facts:
    """Builder of `oracle`: ridge on human ratings over tf-idf of words and word pairs, measured on held-out films."""
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
    scores = tfidf(work.out, [row["text"] for row in held_out])
    return {
        "learned_from": len(learn),
        "held_out": len(held_out),
        "spearman": spearman(scores, [row["rating"] for row in held_out]),
    }


def tfidf(folder: Path, texts: Sequence[str]) -> list[float]:
    """Predicted mean human rating of each text, from -4 to 4, by the model that `fit` wrote to `folder`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    with np.load(folder / "ridge.npz", allow_pickle=False) as saved:
        idf, coefficients, intercept = saved["idf"], saved["coefficients"], float(saved["intercept"])
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=vocabulary)
    features.idf_ = idf
    return [float(x) for x in features.transform(texts) @ coefficients + intercept]


def fit_letters(work: Work) -> Facts:
    """Builder of `oracle` at smoke scale: writes nothing, as there is nothing to learn."""
    return {"spearman": None}


def letters(folder: Path, texts: Sequence[str]) -> list[float]:
    """Share of characters that are letters, in [0, 1]: a scorer without meaning, for the smoke scale."""
    return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in texts]


class LearnedOracle:
    """Oracle that scores each text without its prompt."""

    def __init__(self, key: str, scorer: Scorer):
        self.key, self.scorer = key, scorer

    @property
    def identity(self) -> Identity:
        return {"kind": self.key, "version": 1}

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict per contest, in order. Raises BadNumbers for a score that is not finite."""
        texts = [(contest.prompt, text) for contest in contests for text in (*contest.on, *contest.off)]
        if not texts:
            return
        values = self.scorer([text for _, text in texts])
        prompts = [prompt_hash(prompt) for prompt, _ in texts]
        check_finite(values, prompts, f"oracle {self.key!r}", "check the oracle")
        scores = iter(values)
        for contest in contests:
            yield Judged(tuple(islice(scores, len(contest.on))), tuple(islice(scores, len(contest.off))))
