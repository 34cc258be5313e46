"""Kept rows: whole lines come back, others are counted, many threads may add, and files of old versions are read."""

import json
from concurrent.futures import ThreadPoolExecutor

from stagealign.store.kept import Kept, RowFile


def rows(path, fits=lambda row: True):
    file = RowFile(path, fits)
    return [row for _, row in file.read()], file.damaged


def test_rows_come_back_from_their_places(tmp_path):
    file = RowFile(tmp_path / "a" / "rows.jsonl")
    places = [file.add({"key": str(n), "text": "é" * n}) for n in range(5)]
    assert [place for place, _ in file.read()] == places
    assert [file.at(place) for place in places] == [{"key": str(n), "text": "é" * n} for n in range(5)]
    assert (tmp_path / "a" / "rows.jsonl").read_bytes().isascii()


def test_what_is_not_as_it_was_written_is_counted_and_blank_lines_are_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    for n in range(3):
        RowFile(path).add({"key": str(n), "x": n})
    old = b'{"key": "old", "x": 7}\n'  # of before there were checksums
    lines = path.read_bytes().replace(b'"x": 1', b'"x": 9').splitlines(keepends=True)
    path.write_bytes(b"\n".join([*lines, old]) + b'[1]\n{"x": 1}\n{"key": 1}\n{"key": "ha')
    assert rows(path) == ([{"key": "0", "x": 0}, {"key": "2", "x": 2}, {"key": "old", "x": 7}], 5)
    assert rows(path, lambda row: row["x"] == 2) == ([{"key": "2", "x": 2}], 7)


def test_half_a_line_is_closed_by_the_next_row_or_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)
    file.add({"key": "a"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b')
    place = file.add({"key": "c"})
    assert file.at(place) == {"key": "c"}
    assert rows(path) == ([{"key": "a"}, {"key": "c"}], 1)
    path.write_bytes(whole + b'{"key": "' + b"b" * 200_000)
    file.cut()
    assert path.read_bytes() == whole
    path.write_bytes(b"half")
    file.cut()
    assert path.read_bytes() == b""


def test_many_threads_add_whole_lines(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl")
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda n: file.add({"key": str(n), "text": "x" * (n % 50)}), range(400)))
    found, damaged = rows(file.path)
    assert (sorted(int(row["key"]) for row in found), damaged) == (list(range(400)), 0)
    assert [file.at(place)["key"] for place in places] == [str(n) for n in range(400)]


def test_kept_rows_know_their_places_and_the_last_of_a_key_counts(tmp_path):
    path = tmp_path / "kept.jsonl"
    kept = Kept(path, ["x"])
    kept.add({"key": "a", "x": 1})
    kept.add({"key": "a", "x": 2})
    with open(path, "a") as file:
        file.write(json.dumps({"key": "b", "other": 1}) + "\n" + '{"key": "c')
    again = Kept(path, ["x"])
    assert again.get("a") == {"key": "a", "x": 2}
    assert (list(again.places), again.damaged, again.get("b"), "b" in again) == (["a"], 1, None, False)
    assert path.read_bytes().endswith(b"\n")


def test_without_a_path_rows_lie_in_a_file_that_goes_with_the_owner():
    kept = Kept(None)
    kept.add({"key": "a", "x": 1})
    file = kept._file.path
    assert kept.get("a") == {"key": "a", "x": 1}
    assert file.exists()
    del kept
    assert not file.exists()
