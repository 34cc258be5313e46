"""Fuzzed preference and recorded files: a clear error or a counted drop, and rows that add up."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from factory_files import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagealign.base.errors import BadData
from stagealign.data.preferences import read_preferences
from stagealign.oracle.recorded import votes_by_prompt
from stagealign.oracle.recorded_file import read_recorded

PLAIN = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": 'A "quoted",\nsecond line', "chosen": " é漢字🙂", "rejected": " no"},
]
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "\n", "a", "a b", "a c", "\ud800", "\0", "‮abc", "nan", "1", "on", "off", "tie"]),
    st.text(alphabet="ab \n", max_size=6).map(lambda text: f"\n\nHuman: x\n\nAssistant:{text}"),
)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", 3]), "content": TEXTS}),
    st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), st.one_of(TEXTS, st.none()), max_size=3),
)
VALUES = st.one_of(
    TEXTS,
    TEXTS,
    st.lists(MESSAGE, max_size=3),
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.floats(),
    st.lists(st.lists(st.integers(), max_size=2), max_size=2),
)
NAMES = ["prompt", "chosen", "rejected", "a", "b", "preference", "source", "completion", "score"]
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def tables(names):
    full = st.fixed_dictionaries(dict.fromkeys(names, VALUES))
    loose = st.dictionaries(st.sampled_from([*NAMES, "extra"]), VALUES, max_size=5)
    return st.lists(st.one_of(full, full, full, loose), max_size=6)


def holds_up(path):
    """Fails unless each reader adds up the rows of this file or refuses it with one line."""
    for reader in (lambda: read_preferences(path, prompts=2), lambda: read_recorded(path, prompts=2)):
        try:
            result = reader()
        except BadData as error:
            message = str(error)
        else:
            message = None
        if message is not None:
            assert "\n" not in message
            assert len(message) < 3000
            continue
        if hasattr(result, "rows"):
            used = len(result.rows) + result.repeated
            assert all(row.prompt_text.strip() and row.chosen.strip() and row.rejected.strip() for row in result.rows)
        else:
            used = result.used
            if result.form == "scores":
                assert all(item.votes_on + item.votes_off >= 1 for item in votes_by_prompt(result))
        assert result.given == used + result.not_chosen + result.drops.total()


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[1:3], ["prompt", *NAMES[3:6]], ["prompt", *NAMES[6:]]], ids=str)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_fuzzed_rows(tmp_path, names, ending):
    @FUZZ
    @given(rows=tables(names))
    def fuzz(rows):
        path = tmp_path / f"data.{ending}"
        if ending == "parquet":
            import pyarrow as pa

            columns = {name: [row.get(name) for row in rows] for name in sorted({name for row in rows for name in row})}
            for name, values in columns.items():  # a column has one type
                kind = next((type(value) for value in values if value is not None), None)
                columns[name] = [value if type(value) is kind else None for value in values]
            try:
                write(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
            except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
                return  # not a table
        elif ending == "csv":
            with open(path, "w", encoding="utf-8", errors="replace", newline="") as out:
                table = csv.writer(out)
                table.writerow(names)
                for row in rows:
                    table.writerow([json.dumps(v) if isinstance(v, list) else v for v in row.values()])
        else:
            write(path, rows)
        holds_up(str(path))

    fuzz()


SCORED = [{"prompt": "p", "source": source, "completion": "x", "score": 1.5} for source in ("on", "off", "on")]
SOUND = {
    "jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in PLAIN * 3),
    "json": json.dumps(PLAIN * 3).encode(),
    "csv": b"chosen,rejected,prompt\n" + b'"a ""x""",b,p\nc,"d\ne",q\n' * 3,
    "jsonl.gz": gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in SCORED)),
}


@pytest.mark.parametrize("ending", [*SOUND, "parquet"])
def test_fuzzed_bytes(tmp_path, ending):
    path = tmp_path / f"data.{ending}"
    sound = SOUND[ending] if ending in SOUND else Path(write(path, PLAIN * 3)).read_bytes()

    @settings(FUZZ, max_examples=150)
    @given(st.data())
    def fuzz(data):
        content = bytearray(sound)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
            content = content or bytearray(b"x")
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        holds_up(str(path))

    fuzz()
