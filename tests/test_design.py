"""`docs/design.md` names files, functions and classes that exist, and its walks have six steps of one line each."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^\*\*(An? \w+)\.\*\*\n\n((?:\d\. .*\n)+)", DESIGN, re.MULTILINE))


def source(file):
    return (ROOT / "stagealign" / file).read_text(encoding="utf-8")


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", DESIGN))
    assert len(named) > 20
    missing = [name for name in named if not (ROOT / "stagealign" / name).exists() and not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("row", re.findall(r"^\| [^|]+ \| (`\w+/[^|]+) \| (`[^|]+) \|$", DESIGN, re.MULTILINE))
def test_what_the_table_names_is_in_its_file(row):
    files, names = row
    text = "".join(source(file) for file in re.findall(r"`([\w/]+\.py)`", files))
    for name in re.findall(r"`(\w+)`", names.partition(";")[0]):
        assert re.search(rf"\b{name}\b", text), name


def test_there_are_four_walks_of_six_lines():
    assert {name: len(steps.splitlines()) for name, steps in WALKS.items()} == dict.fromkeys(
        ("A cell", "A seed", "An oracle", "A result"), 6
    )


@pytest.mark.parametrize("step", [step for steps in WALKS.values() for step in steps.splitlines()])
def test_a_step_names_what_is_in_its_file(step):
    """The words in code marks before the end of the first sentence's colon, and those called in it."""
    file = re.match(r"\d\. `([\w/]+\.py)`: `(\w+)(?:\(.*?\))?`", step)
    if file:
        assert re.search(rf"\b(def|class) {file[2]}\b|^{file[2]}\b", source(file[1]), re.MULTILINE), step
