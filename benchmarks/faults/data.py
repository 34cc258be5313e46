"""Files that nobody should write, given to every reader: a clear error or a counted drop, and rows that add up."""

import gzip
import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stagealign.base.errors import StagealignError

Row = dict[str, Any]
SCALE = "lab"

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\n", "a", "a b", "a  b", "a b ", "\ud800", "\0", "\x1b[31mred", "\u202eabc", "שלום", "مرحبا", "=1+1"]
    ),
    st.sampled_from(["nan", "NaN", "inf", "-inf", "1e400", "1", "1.5", "2", "on", "off", "tie", "None", "null", "[{"]),
    st.text(alphabet="ab \n", max_size=6).map(lambda text: f"\n\nHuman: x\n\nAssistant:{text}"),
)
NUMBERS = st.one_of(
    st.floats(), st.integers(-2, 3), st.sampled_from([10**400, -(10**30), 1e308, -0.0, 2**63, float("nan")])
)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", 3]), "content": TEXTS}),
    st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), st.one_of(TEXTS, st.none()), max_size=3),
)
VALUES = st.one_of(
    TEXTS,
    TEXTS,
    NUMBERS,
    st.lists(MESSAGE, max_size=3),
    st.none(),
    st.booleans(),
    st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
PLAIN = {"prompt": "p", "chosen": "c", "rejected": "r"}
SHAPES: dict[str, Row] = {
    "preferences": PLAIN,
    "implicit": {"chosen": "one two three", "rejected": "one two four"},
    "pairs": {"prompt": "p", "a": "x", "b": "y", "preference": 0.7},
    "scores": {"prompt": "p", "source": "on", "completion": "x", "score": 1.0},
    "comparisons": {"prompt_index": 1, "generator": "g", "preference": 1.5, "baseline_chars": 3, "model_chars": 4},
    "difficulty": {"prompt_index": 1, "instruction_difficulty": 0.5},
    "weights": {
        "": "g",
        "np.tanh(std_delta_len)": 0.1,
        "instruction_difficulty": 0.1,
        "not_gamed_baseline.astype(float)": 0.1,
    },
    "outputs": {"instruction": "p", "output": "x", "generator": "g"},
    "annotations": {"instruction": "p", "preference": 1.2, "annotator": "j", "generator_2": "g"},
    "prompts": {"text": "p", "split": "test", "title": "t"},
    "candidates": {"prompt": "p", "completion": "c", "source": "on", "index": 0, "token_ids": [1], "logp": -1.0},
    "labelled": {**PLAIN, "source": "off", "margin": 0.5},
    "answers": {"key": "k", "preference": 1.5, "served": "j", "prompt_tokens": 3},
}
"""Rows as they should be, by what reads them."""


def _rows(shape: Row) -> Any:
    """Tables of some rows of this shape, most of them with a value, or a column, that does not belong there."""
    right = st.fixed_dictionaries({name: _mostly(value) for name, value in shape.items()})
    just = st.just(shape)
    loose = st.dictionaries(st.sampled_from([*shape, "extra"]), VALUES, max_size=5)
    return st.lists(st.one_of(just, just, right, right, loose), max_size=5).map(_told_apart)


def _told_apart(rows: list[Row]) -> list[Row]:
    """Rows of prompts of their own, where only one row a prompt is allowed."""
    made = [dict(row) for row in rows]
    for number, row in enumerate(made):
        if row.get("prompt_index") == 1:
            row["prompt_index"] = number
        if row.get("instruction") == "p" and "output" in row:
            row["instruction"] = f"p{number}"
        if row.get("") == "g":
            row[""] = f"g{number}"
    return made


def _mostly(value: Any) -> Any:
    return st.integers(0, 7).flatmap(lambda n: VALUES if n == 7 else st.just(value))


TABLES = st.sampled_from(sorted(SHAPES)).flatmap(lambda name: st.tuples(st.just(name), _rows(SHAPES[name])))
ENDINGS = ("jsonl", "json", "csv", "parquet")
DAMAGES = (
    "",
    "",
    "",
    "",
    "cut",
    "flip",
    "latin",
    "gzip",
    "gzip cut",
    "not gzip",
    "deep",
    "long number",
    "other ending",
)


def encoded(rows: list[Row], ending: str) -> bytes:
    """A file of these rows; values that a format cannot hold are written as it can."""
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "json":
        return json.dumps(rows).encode()
    if ending == "csv":
        import csv
        import io

        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows([{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows])
        return text.getvalue().encode("utf-8", "surrogatepass")
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.Table.from_pylist(rows), sink)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError, NotImplementedError):
        return json.dumps(rows).encode()  # a parquet file that is none
    return bytes(sink.getvalue().to_pybytes())


def damaged(data: bytes, damage: str, place: int) -> bytes:
    """The file with one kind of damage."""
    at = place % (len(data) + 1)
    if damage == "cut":
        return data[:at]
    if damage == "flip" and data:
        at %= len(data)
        return data[:at] + bytes([data[at] ^ (1 << place % 8)]) + data[at + 1 :]
    if damage == "latin":
        return data[:at] + b"\xe9\xff" + data[at:]
    if damage in ("gzip", "gzip cut"):
        whole = gzip.compress(data, mtime=0)
        return whole if damage == "gzip" else whole[: max(1, len(whole) - 1 - place % 20)]
    if damage == "deep":
        return data[:at] + b"[" * 100_000 + data[at:]
    if damage == "long number":
        return data[:at] + b"9" * 5000 + data[at:]
    return data


def _added_up(found: Any) -> None:
    """Fails where rows are neither used nor counted."""
    if hasattr(found, "repeated"):
        used = len(found.rows) + found.repeated
        assert all(row.prompt_text.strip() and row.chosen.strip() and row.rejected.strip() for row in found.rows)
    else:
        used = found.used
    total = used + found.not_chosen + found.drops.total()
    assert found.given == total, f"{found.given} rows given, {total} accounted for"


def readers() -> dict[str, Callable[[Path, int], None]]:
    """What reads a file that a user may give, each with what must hold of what it read; the rows that were written."""
    from stagealign.data.preferences import read_preferences
    from stagealign.data.records import Candidate, Pair, Prompt, read_rows
    from stagealign.evaluate.alpaca_eval import recorded, rows
    from stagealign.evaluate.alpaca_eval.answers import KeptAnswers
    from stagealign.evaluate.alpaca_eval.comparisons import read_comparisons, read_difficulty, read_weights
    from stagealign.evaluate.alpaca_eval.lc_win_rate import lc_win_rates
    from stagealign.oracle.recorded import votes_by_prompt
    from stagealign.oracle.recorded_file import read_recorded

    beside: dict[Path, Path] = {}

    def preferences(path: Path, count: int) -> None:
        for most in (None, 2):
            _added_up(read_preferences(str(path), most))

    def recordings(path: Path, count: int) -> None:
        found = read_recorded(path, 2)
        _added_up(found)
        if found.form == "scores":
            assert all(one.votes_on + one.votes_off >= 1 for one in votes_by_prompt(found))

    def comparisons(path: Path, count: int) -> None:
        found = read_comparisons(str(path), dict.fromkeys(range(-5, 2000), 0.5))
        assert sum(map(len, found.values())) <= max(count, 1) * 2
        beside.setdefault(path.parent, path.parent / "difficulty.csv").write_text(
            "prompt_index,instruction_difficulty\n" + "".join(f"{n},{n / 10}\n" for n in range(-5, 10))
        )
        for one in lc_win_rates(path, beside[path.parent]):
            assert one.n + one.failed == len(found[one.generator])

    def outputs(path: Path, count: int) -> None:
        battle = rows.read(str(path), str(path))
        assert len(battle.items) == len({item.hash for item in battle.items})

    def annotations(path: Path, count: int) -> None:
        item = rows.BattleItem(1, "p", "x", "y")
        battle = rows.Battle((item,), "g", "b", {})
        answers, _ = recorded.annotations(str(path), battle)
        assert all((one.preference is None) == (one.failed is not None) for one in answers.values())

    def answers(path: Path, count: int) -> None:
        kept = KeptAnswers(path)
        lines = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
        assert lines == kept.damaged + sum(map(len, kept.bills.values())), "lines do not add up"

    def of(kind: Any) -> Callable[[Path, int], None]:
        def read(path: Path, count: int) -> None:
            lines = path.read_bytes().count(b"\n") + 1
            assert len(read_rows(path, kind)) <= lines

        return read

    return {
        "preferences": preferences,
        "recorded": recordings,
        "comparisons": comparisons,
        "difficulty": lambda path, count: _ignore(read_difficulty(str(path))),
        "weights": lambda path, count: _ignore(read_weights(str(path))),
        "outputs": outputs,
        "annotations": annotations,
        "prompts": of(Prompt),
        "candidates": of(Candidate),
        "labelled pairs": of(Pair),
        "kept answers": answers,
    }


LINES = {"prompts", "candidates", "labelled pairs", "kept answers"}
"""Readers of files of our own, which are JSON lines and nothing else."""
OWN = {"pairs": "recorded", "scores": "recorded", "implicit": "preferences", "labelled": "labelled pairs"}
OWN["answers"] = "kept answers"


class Tally:
    """What came of it: files by reader and outcome, and what must not be."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[tuple[str, str]] = []

    def read(self, name: str, reader: Callable[[Path, int], None], path: Path, count: int) -> None:
        """One file, one reader."""
        try:
            reader(path, count)
            outcome = "read"
        except StagealignError as error:
            message = str(error)
            outcome = "refused"
            if "\n" in message or len(message) > 3000 or not message.strip():
                outcome = "wrong"
                self.wrong.append((name, f"{name}: a message of {len(message)} characters: {message[:200]!r}"))
        except Exception as error:
            outcome = "wrong"
            (*_, last) = traceback.extract_tb(error.__traceback__)
            text = str(error).split("\n")[0][:160]
            self.wrong.append(
                (name, f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {text}")
            )
        self.counts[name, outcome] += 1


def tables(folder: Path, inputs: int, chance: int | None, tally: Tally) -> None:
    """Feeds `inputs` (file, reader) pairs that hypothesis made up; derandomized where there is no `chance`."""
    every = readers()
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
        others = [one for one in every if one not in LINES or name == "jsonl"]
        for one in {own, others[place % len(others)]}:
            tally.read(one, every[one], path, len(rows))
            used += 1

    if chance is not None:
        feed = seed(chance)(feed)
    while used < inputs:
        feed()
        if chance is None:
            break


def results(folder: Path, inputs: int, chance: int, tally: Tally, example: Row) -> None:
    """Feeds results with a value exchanged, taken away or added somewhere, and files that are none."""
    from stagealign.report.read.book import open_book
    from stagealign.store.results import done_rungs, read_result, result_path, stands

    rng = random.Random(chance)
    junk = [None, True, "", "text", -1, 1e400, float("nan"), 10**400, [], {}, [[]], {"a": None}, [None], "\ud800"]
    path = result_path(folder, SCALE, example["cell"], example["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)

    def read(path: Path, count: int) -> None:
        stands(path, set())
        book = open_book(folder, SCALE)
        assert len(book.results) + len(book.damaged) == 1, "a result is neither read nor named as damaged"
        done_rungs(read_result(path))

    for _ in range(inputs):
        made = json.loads(json.dumps(example))
        for _ in range(rng.choice((1, 1, 2))):
            _mutate(made, rng, junk)
        data = json.dumps(made).encode()
        path.write_bytes(damaged(data, rng.choice(DAMAGES), rng.randrange(10**6)))
        tally.read("results", read, path, 1)


def _mutate(node: Any, rng: random.Random, junk: list[Any]) -> None:
    """Changes one place, deep or shallow."""
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
    """A prompt of 1 MB, many identical ones, equal candidates, prompts that differ in white space alone."""
    every = readers()
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
            tally.read("preferences", every["preferences"], path, len(rows))
    from stagealign.data.preferences import read_preferences

    path = folder / "white.jsonl"
    path.write_bytes(encoded(cases["white space"], "jsonl"))
    if len(read_preferences(str(path)).rows) != len(cases["white space"]):
        tally.wrong.append(("preferences", "prompts that differ in white space alone are merged"))
    path.write_bytes(encoded(cases["identical"], "jsonl"))
    found = read_preferences(str(path))
    if (len(found.rows), found.repeated) != (1, large - 1):
        tally.wrong.append(
            ("preferences", f"{large} identical prompts: {len(found.rows)} rows, {found.repeated} repeated")
        )
    path = folder / "equal.jsonl"
    path.write_bytes(encoded(cases["equal"], "jsonl"))
    if read_preferences(str(path)).ties != 1:
        tally.wrong.append(("preferences", "chosen equal to rejected is not counted"))


def _ignore(_: Any) -> None:
    """What was read needs no further look."""


def measure(folder: Path, inputs: int, chance: int) -> Iterator[Row]:
    """One row a reader: files given, and how many were read or refused with a clear message."""
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
    """A result with few prompts, so that a change seldom falls on one of them."""
    text = json.dumps(result)
    made: Row = json.loads(text)

    def shrink(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in list(node.items()):
                if key in ("prompts", "artifacts") and isinstance(value, dict):
                    node[key] = dict(list(value.items())[:2])
                elif key in ("curve", "samples"):
                    node[key] = value[:1]
                shrink(node[key])
        elif isinstance(node, list):
            for one in node:
                shrink(one)

    shrink(made)
    return made
