"""Rows in several files, in folders that other programs write, and inside of one JSON object."""

import json

import pytest
from factory_files import refused, write

from stagealign.data.preferences import read_preferences

ROWS = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(6)]
OTHER = [{"prompt": "Another?", "chosen": "p", "rejected": "q"}]


def read(path, **options):
    return sorted((row.prompt, row.chosen, row.rejected) for row in read_preferences(str(path), **options).rows)


EXPECTED = sorted((row["prompt"], row["chosen"], row["rejected"]) for row in ROWS)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "jsonl.gz", "json", "csv"])
def test_shards_of_a_folder_and_of_a_pattern(tmp_path, ending):
    for n in range(3):
        write(tmp_path / f"train-{n:05}-of-00003.{ending}", ROWS[2 * n : 2 * n + 2])
    for source in (tmp_path, tmp_path / f"*.{ending}", tmp_path / f"train-0000[0-2]*.{ending}"):
        assert read(source) == EXPECTED
    assert read(tmp_path, split="train") == EXPECTED
    write(tmp_path / f"test-00000-of-00001.{ending}", OTHER)
    refused(lambda: read(tmp_path), "splits test, train found", "--split test")
    refused(lambda: read(tmp_path, split="dev"), "no files of split 'dev'; found: test, train")
    assert read(tmp_path, split="train") == EXPECTED
    assert read(tmp_path, split="test") == [("Another?", "p", "q")]
    assert read(tmp_path / f"train-*.{ending}") == EXPECTED


def test_rows_of_shards_are_numbered_through(tmp_path):
    write(tmp_path / "part-0.jsonl", ROWS[:3])
    write(tmp_path / "part-1.jsonl", [*ROWS[3:], {"prompt": "p", "chosen": "", "rejected": "b"}])
    assert "empty `chosen`: 1 (row 7)" in " ".join(read_preferences(str(tmp_path)).notes())


def test_a_folder_as_the_hub_has_it(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train_prefs-00000-of-00001-0f1e2d3c4b5a6978.parquet", ROWS)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert read(tmp_path) == read(tmp_path, split="train_prefs") == EXPECTED


def test_folders_and_patterns_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    refused(lambda: read(tmp_path), "a folder found without")
    refused(lambda: read(tmp_path / "*.parquet"), "no data file has such a name")
    write(tmp_path / "part-0.jsonl", ROWS)
    write(tmp_path / "part-1.csv", ROWS)
    refused(lambda: read(tmp_path), "files that end in .csv, .jsonl found")


def test_saved_data_sets(tmp_path):
    """Source: datasets 5.2 `Dataset.save_to_disk` and `DatasetDict.save_to_disk`."""
    import datasets

    datasets.disable_progress_bars()
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(OTHER)
    train.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "one") == EXPECTED
    assert read(tmp_path / "two", split="test") == [("Another?", "p", "q")]
    assert read(tmp_path / "two" / "train") == EXPECTED
    refused(lambda: read(tmp_path / "two"), "splits test, train found", "--split test")
    refused(lambda: read(tmp_path / "two", split="dev"), "splits test, train found")
    refused(lambda: read(tmp_path / "one", split="train"), "leave --split train out")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no")
    refused(lambda: read(tmp_path / "one"), "not a sound saved data set")


def columns(rows):
    return {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}


def table(rows):
    """Pandas' orient="split"."""
    return {"columns": list(rows[0]), "index": list(range(len(rows))), "data": [list(row.values()) for row in rows]}


WRAPPED = {
    "pandas columns": columns(ROWS),
    "pandas index": {str(n): row for n, row in enumerate(ROWS)},
    "pandas split": table(ROWS),
    "pandas table": {"schema": {"fields": []}, "data": ROWS},
    "lists": {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "data": {"data": ROWS},
    "data and more": {"version": "1.0", "data": ROWS, "total": 6},
    "train": {"train": ROWS},
    "columns of a split": {"train": columns(ROWS)},
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "json.gz"])
@pytest.mark.parametrize("name", WRAPPED)
def test_rows_inside_of_one_object(tmp_path, name, ending):
    """Source: pandas 3 `DataFrame.to_json`, `DataFrame.to_dict("list")`."""
    import gzip

    text = json.dumps(WRAPPED[name]).encode()
    path = tmp_path / f"data.{ending}"
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    assert read(path) == EXPECTED


@pytest.mark.parametrize("indent", [None, 1])
def test_splits_inside_of_one_object(tmp_path, indent):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"about": {"x": [1]}, "train": ROWS, "test": OTHER, "n": 12}, indent=indent))
    refused(lambda: read(path), "splits train, test found", "--split train")
    assert read(path, split="train") == EXPECTED
    assert read(path, split="test") == [("Another?", "p", "q")]
    refused(lambda: read(path, split="dev"), "'dev'")
    path.write_text(json.dumps({"train": ROWS, "test": OTHER}, indent=indent))
    refused(lambda: read(path), "splits train, test found", "--split train")
    assert read(path, split="test") == [("Another?", "p", "q")]
    path.write_text(json.dumps({"train": ROWS, "test": OTHER}, indent=indent)[:-30])
    refused(lambda: read(path, split="train"), str(path))


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv"])
@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_rows_that_were_read_ahead_are_read_once(tmp_path, ending, count):
    rows = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
    for source in (tmp_path / f"data-0.{ending}", tmp_path):
        write(tmp_path / f"data-0.{ending}", rows)
        data = read_preferences(str(source))
        assert (data.given, len(data.rows), data.repeated) == (count, count, 0)


def test_one_row_is_no_wrapper(tmp_path):
    path = tmp_path / "data.json"
    turn = {"role": "user", "content": "Why?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("a", "b"))
    for row in (
        {"prompt": [turn], "chosen": [good], "rejected": [bad]},
        {"prompt": "Why?", "chosen": "a", "rejected": "b"},
    ):
        path.write_text(json.dumps(row))
        (found,) = read_preferences(str(path)).rows
        assert (found.prompt_text, found.chosen, found.rejected) == ("Why?", "a", "b")


def test_a_long_wrapped_list_is_not_held(tmp_path):
    import tracemalloc

    def peak(count):
        path = tmp_path / f"{count}.json"
        rows = [{"prompt": f"{n} {'x' * 400}", "chosen": "a", "rejected": "b"} for n in range(count)]
        path.write_text(json.dumps({"train": rows}))
        tracemalloc.start()
        try:
            assert read_preferences(str(path), prompts=50).given == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(12_000) < peak(3_000) + 500_000
