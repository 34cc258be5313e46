"""`docs/extending.md` is complete: its steps, applied to a copy of the package, add what they say, in so many files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## An? (\w+)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))
FILES = {"model": 1, "method": 2, "source": 2, "preference": 2, "evaluation": 2, "sampler": 2, "executor": 2}
"""The aims of the issue that this documentation answers: files that each addition touches."""
DIFF = re.compile(r"```diff\n--- (\S+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)

CHECK = """
import sys
from dataclasses import replace
from pathlib import Path
from stagealign.execute.carry_out import carry_out
from stagealign.execute.executors import Execution, opened
from stagealign.grid import registry, scales
from stagealign.grid.preferences import PREFERENCES, Preference
from stagealign.grid.select import select
from stagealign.grid.variants import sampled_by
from stagealign.base.kind import code_at
from stagealign.grid.samplers import SAMPLERS
from stagealign.plan.plan import make_plan
from stagealign.store.folder import Store
from stagealign.store.results import read_result
from benchmarks.faults import lab

class Told:
    heard = wrote = lambda *_: None

home = Path(sys.argv[1])
assert {cell.model.key for cell in select("lab", "toy and dpo")} == {"toy"}, "model"
assert registry.cell("zephyr-ramp-1on").beyond_paper, "method"
assert registry.cell("zephyr-dpo-2off_echo").sources[-1].pool == "data set", "source"
lab.install()
tiny = scales.SCALES["tiny"]
engine = code_at(SAMPLERS["parrot"].probe)(None, tiny.decoding, home)
small = replace(tiny.training, epochs=1)
arena = Preference("noisy", "louder", oracle="marks", gold="arena", judge="dataset", sign=1)
evaluation = replace(tiny.evaluation, judging=arena.gold_kinds.judging)
for place, (preference, measured) in enumerate(((PREFERENCES["loud"], tiny.evaluation), (arena, evaluation))):
    scales.SCALES["tiny"] = replace(tiny, preference=preference, evaluation=measured, training=small)
    cells = sampled_by([registry.cell("zephyr-ramp-1echo", "tiny")], engine)
    assert cells[0].id == "zephyr-ramp_parrot-1echo"
    store = Store(home / f"store{place}")
    plan = make_plan(cells, (0,), store)
    with opened(plan, store, Execution(executor="serial")) as crew:
        outcome = carry_out(plan, store, home / f"results{place}", crew, Told())
    assert not outcome.failed, outcome.failed
    (file,) = (home / f"results{place}").rglob("*.json")
    result = read_result(file)
    gold = result["start"]["test"]["gold"]
    assert gold["unit"] == preference.gold_kinds.unit, gold
    assert result["rounds"][0]["pairs"]["pairs"] + sum(result["rounds"][0]["pairs"]["drops"].values()) == 8
print("all of it works")
"""


def applied(text: str, block: str) -> str:
    """`text` with the added lines of a block; its other lines must stand together in the text, once."""
    lines = block.rstrip("\n").split("\n")
    old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    new = "\n".join(line[1:] for line in lines)
    assert text.count(f"{old}\n") == 1, f"not there once: {old!r}"
    return text.replace(f"{old}\n", f"{new}\n")


def touched(section: str) -> set[str]:
    return {name for name, _ in (*DIFF.findall(section), *FILE.findall(section))}


@pytest.mark.parametrize("name", FILES)
def test_an_addition_touches_few_files(name):
    assert len(touched(SECTIONS[name])) == FILES[name]


def test_each_step_of_the_documentation_works(tmp_path):
    package = tmp_path / "stagealign"
    shutil.copytree(ROOT / "stagealign", package, ignore=shutil.ignore_patterns("__pycache__"))
    for section in SECTIONS.values():
        for name, block in DIFF.findall(section):
            file = tmp_path / name
            file.write_text(applied(file.read_text(encoding="utf-8"), block), encoding="utf-8")
        for name, block in FILE.findall(section):
            assert not (tmp_path / name).exists(), name
            (tmp_path / name).write_text(block, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    given = os.environ | {"PYTHONPATH": path, "STAGEALIGN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path)], cwd=tmp_path, env=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all of it works" in done.stdout
