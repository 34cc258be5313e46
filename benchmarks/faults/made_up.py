"""Made-up files with rows of every shape that a reader accepts, most of them with unexpected values."""

import gzip
import json
from typing import Any

from hypothesis import strategies as st

Row = dict[str, Any]
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
"""Reader -> a valid row."""


def _rows(shape: Row) -> Any:
    """Strategy for tables with rows of this shape, most of them with an unexpected value or column."""
    right = st.fixed_dictionaries({name: _mostly(value) for name, value in shape.items()})
    just = st.just(shape)
    loose = st.dictionaries(st.sampled_from([*shape, "extra"]), VALUES, max_size=5)
    return st.lists(st.one_of(just, just, right, right, loose), max_size=5).map(_told_apart)


def _told_apart(rows: list[Row]) -> list[Row]:
    """Copy of the rows with distinct prompts, for readers that allow one row for each prompt."""
    copies = [dict(row) for row in rows]
    for number, row in enumerate(copies):
        if row.get("prompt_index") == 1:
            row["prompt_index"] = number
        if row.get("instruction") == "p" and "output" in row:
            row["instruction"] = f"p{number}"
        if row.get("") == "g":
            row[""] = f"g{number}"
    return copies


def _mostly(value: Any) -> Any:
    """Strategy for this value, and in one case of eight for any other."""
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
    """Bytes of a file with these rows; rows that parquet cannot hold are written as JSON."""
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
        return json.dumps(rows).encode()  # a .parquet file that is not parquet
    return bytes(sink.getvalue().to_pybytes())


def damaged(data: bytes, damage: str, place: int) -> bytes:
    """Bytes with one kind of damage."""
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
