"""A file is complete or unchanged if its writer dies."""

import os
import subprocess
import sys

import pytest

from stagealign.base.errors import CannotRun
from stagealign.store import files as atomic
from stagealign.store.files import append, write_text


def test_a_text_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one\r\ntwo\u20ac")
    assert path.read_bytes() == "one\r\ntwo\u20ac".encode()
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_keeps_what_stood_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(self, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(atomic.Path, "write_bytes", full)
    with pytest.raises(CannotRun, match=r"No space left on device.*all that is built stays"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_parts_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone = tmp_path / f"a.txt.{dead.stdout.strip()}.part"
    alive = tmp_path / f"a.txt.{os.getppid()}.part"
    other = tmp_path / f"b.txt.{dead.stdout.strip()}.part"
    for path in (gone, alive, other):
        path.touch()
    write_text(tmp_path / "a.txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", alive.name, other.name}


def test_lines_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append(path, "one\n")
    with open(path, "ab") as file:
        file.write(b"ha")
    append(path, "two\n")
    assert path.read_bytes() == b"one\nha\ntwo\n"
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:2]))
    with pytest.raises(CannotRun, match="No space left"):
        append(path, "three\n")
    assert path.read_bytes() == b"one\nha\ntwo\n"
