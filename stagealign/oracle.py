"""The preference oracle: scores candidates, ranks them into training pairs, counts the votes of a boundary measurement.

Training labels come from here and from nowhere else; the gold reward of `evaluate.py` is another model.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagealign.boundary import cross_votes, top_vote
from stagealign.errors import BadData
from stagealign.finite import check_finite
from stagealign.records import Candidate, Drops, Pair, by_prompt, prompt_hash, read_dicts, read_rows, write_rows
from stagealign.statistics import spearman
from stagealign.store import Work

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
    """Builder of `pairs`: the better of a prompt's two candidates is chosen; a tie goes to the second, as in the paper.

    Source: the authors' labelling script. Pairs that cannot teach are dropped and counted.
    """
    candidates = read_rows(work.inputs["candidates"] / "candidates.jsonl", Candidate)
    scores = score(candidates, work)
    ranked = {id(candidate): value for candidate, value in zip(candidates, scores, strict=True)}
    pairs, drops, ties = [], Drops(), 0
    groups = by_prompt(candidates)
    for prompt, (first, second) in groups.items():
        if not first.completion or not second.completion:
            drops["empty completion"] += 1
        elif first.completion == second.completion:
            drops["chosen equals rejected"] += 1
        else:
            margin = ranked[id(first)] - ranked[id(second)]
            ties += margin == 0
            chosen, rejected = (first, second) if margin > 0 else (second, first)
            pairs.append(
                Pair(
                    prompt,
                    chosen.completion,
                    rejected.completion,
                    chosen.source,
                    abs(margin),
                    chosen.truncated,
                    rejected.truncated,
                )
            )
    drops.check(len(groups), len(pairs))
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "the file is empty"
        raise BadData(
            f"{work.inputs['candidates'] / 'candidates.jsonl'}: no usable pair among {len(groups)} prompts "
            f"({reasons}); look at the candidates and at the policy that wrote them"
        )
    write_rows(work.out / "pairs.jsonl", pairs)
    margins = [pair.margin for pair in pairs]
    return {
        "pairs": len(pairs),
        "ties": ties,
        "margin": round(float(np.mean(margins)), 4),
        "truncated": sum(pair.chosen_truncated + pair.rejected_truncated for pair in pairs),
        "drops": dict(drops),
    }


def votes(work: Work) -> dict[str, Any]:
    """Builder of `votes`: each prompt's on-policy completions against its static candidates, under the oracle."""
    on = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    off = by_prompt(read_rows(work.inputs["static"] / "candidates.jsonl", Candidate))
    on_scores = dict(zip(map(id, on), score(on, work), strict=True))
    flat = [candidate for group in off.values() for candidate in group]
    off_scores = dict(zip(map(id, flat), score(flat, work), strict=True))
    rows = []
    for prompt, group in by_prompt(on).items():
        ours = [on_scores[id(candidate)] for candidate in group]
        theirs = [off_scores[id(candidate)] for candidate in off[prompt]]
        votes_on, votes_off, ties = cross_votes(ours, theirs)
        top_on, top_off = top_vote(ours, theirs)
        rows.append(
            {
                "prompt": prompt_hash(prompt),
                "on": votes_on,
                "off": votes_off,
                "ties": ties,
                "top_on": top_on,
                "top_off": top_off,
            }
        )
    write_rows(work.out / "votes.jsonl", rows)
    return {"prompts": len(rows)}
