"""Malformed files for every reader, which must raise a clear error or count every row."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.faults.made_up import DAMAGES, ENDINGS, PLAIN, TABLES, Row, damaged, encoded
from benchmarks.faults.readers import LINES, OWN, READERS, Tally

SCALE = "lab"


def tables(folder: Path, inputs: int, chance: int | None, tally: Tally) -> None:
    """Feeds `inputs` (file, reader) pairs made by hypothesis; `chance` is its seed, None for deterministic examples."""
    used = 0

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=chance is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TABLES, st.sampled_from(ENDINGS), st.sampled_from(DAMAGES), st.integers(0, 10**6))
    def feed(table: tuple[str, list[Row]], ending: str, damage: str, place: int) -> None:
        nonlocal used
        if used >= inputs:
            return
        kind, rows = table
        own = OWN.get(kind, kind)
        ending = "jsonl" if own in LINES else ending
        zipped = ".gz" * damage.startswith(("gzip", "not gzip"))
        name = {"other ending": ENDINGS[place % 4]}.get(damage, ending)
        path = folder / f"table.{name}{zipped}"
        path.write_bytes(damaged(encoded(rows, ending), damage, place))
        others = [reader for reader in READERS if reader not in LINES or name == "jsonl"]
        for reader in {own, others[place % len(others)]}:
            tally.read(reader, READERS[reader], path, len(rows))
            used += 1

    if chance is not None:
        feed = seed(chance)(feed)
    while used < inputs:
        feed()
        if chance is None:
            break


def results(folder: Path, inputs: int, chance: int, tally: Tally, example: Row) -> None:
    """Feeds results with a value changed, removed or added somewhere, and damaged files."""
    from stagealign.report.read.book import open_book
    from stagealign.store.results import done_rungs, read_result, result_path, stands

    rng = random.Random(chance)
    junk = [None, True, "", "text", -1, 1e400, float("nan"), 10**400, [], {}, [[]], {"a": None}, [None], "\ud800"]
    path = result_path(folder, SCALE, example["cell"], example["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)

    def read(path: Path, count: int) -> None:
        stands(path, set())
        book = open_book(folder, SCALE)
        assert len(book.results) + len(book.damaged) == 1, "a result is neither read nor reported as damaged"
        done_rungs(read_result(path))

    for _ in range(inputs):
        mutated = json.loads(json.dumps(example))
        for _ in range(rng.choice((1, 1, 2))):
            _mutate(mutated, rng, junk)
        data = json.dumps(mutated).encode()
        path.write_bytes(damaged(data, rng.choice(DAMAGES), rng.randrange(10**6)))
        tally.read("results", read, path, 1)


def _mutate(node: Any, rng: random.Random, junk: list[Any]) -> None:
    """Changes, removes or adds one value at a random place, deep or shallow."""
    while True:
        places = list(node) if isinstance(node, dict) else range(len(node))
        if not places:
            return
        place = rng.choice(places)
        inner = node[place]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            node = inner
            continue
        act = rng.random()
        if act < 0.7:
            node[place] = rng.choice(junk)
        elif act < 0.9:
            del node[place]
        elif isinstance(node, dict):
            node["extra"] = rng.choice(junk)
        return


def extremes(folder: Path, tally: Tally, large: int = 100_000) -> None:
    """Feeds extreme rows: a prompt of 1 MB, equal prompts, equal candidates, prompts that differ in white space."""
    long = "word " * 200_000
    cases: dict[str, list[Row]] = {
        "long": [{**PLAIN, "prompt": long}, PLAIN],
        "identical": [PLAIN] * large,
        "equal": [{**PLAIN, "rejected": "c"}] * 3,
        "white space": [{**PLAIN, "prompt": text} for text in ("a b", "a  b", " a b", "a b\n", "a\tb", "a\u00a0b")],
        "right to left": [{**PLAIN, "prompt": "\u202eשלום", "chosen": "مرحبا"}],
        "surrogates": [{**PLAIN, "prompt": "\ud800"}, PLAIN],
        "control": [{**PLAIN, "chosen": "".join(map(chr, range(32)))}],
    }
    for name, rows in cases.items():
        for ending in ("jsonl", "json", "csv") if name == "identical" else ENDINGS:
            path = folder / f"extreme.{ending}"
            path.write_bytes(encoded(rows, ending))
            tally.read("preferences", READERS["preferences"], path, len(rows))
    from stagealign.data.preferences import read_preferences

    path = folder / "white.jsonl"
    path.write_bytes(encoded(cases["white space"], "jsonl"))
    if len(read_preferences(str(path)).rows) != len(cases["white space"]):
        tally.wrong.append(("preferences", "prompts that differ in white space alone are merged"))
    path.write_bytes(encoded(cases["identical"], "jsonl"))
    data = read_preferences(str(path))
    if (len(data.rows), data.repeated) != (1, large - 1):
        tally.wrong.append(
            ("preferences", f"{large} identical prompts: {len(data.rows)} rows, {data.repeated} repeated")
        )
    path = folder / "equal.jsonl"
    path.write_bytes(encoded(cases["equal"], "jsonl"))
    if read_preferences(str(path)).ties != 1:
        tally.wrong.append(("preferences", "chosen equal to rejected is not counted"))


def measure(folder: Path, inputs: int, chance: int) -> Iterator[Row]:
    """One row for each reader: files given, and how many were read or refused with a clear message."""
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    extremes(folder, tally)
    share = inputs // 20
    tables(folder, inputs - share, chance, tally)
    path = next(iter(sorted((Path(__file__).resolve().parents[2] / "results" / SCALE).glob("*.json"))))
    results(folder, share, chance, tally, _small(json.loads(path.read_text(encoding="utf-8"))))
    for name in sorted({name for name, _ in tally.counts}):
        counts = {outcome: tally.counts[name, outcome] for outcome in ("read", "refused", "wrong")}
        wrong = sorted({text for who, text in tally.wrong if who == name})
        yield {
            "tried": f"made-up files for the reader of {name}",
            "times": sum(counts.values()),
            "survived": counts["read"] + counts["refused"] if not wrong or counts["wrong"] else 0,
            "wrong": wrong[:5],
            "found": f"{counts['read']} read and counted, {counts['refused']} refused with a reason",
        }


def _small(result: Row) -> Row:
    """Copy of a result with few prompts and artifacts, so that mutations mostly fall on other fields."""
    text = json.dumps(result)
    small: Row = json.loads(text)

    def shrink(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in list(node.items()):
                if key in ("prompts", "artifacts") and isinstance(value, dict):
                    node[key] = dict(list(value.items())[:2])
                elif key in ("curve", "samples"):
                    node[key] = value[:1]
                shrink(node[key])
        elif isinstance(node, list):
            for item in node:
                shrink(item)

    shrink(small)
    return small
