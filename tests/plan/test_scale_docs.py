"""The tables of `docs/scale.md` equal those of the current plan."""

import re
from pathlib import Path

import pytest

from stagealign.base.errors import BadData
from stagealign.cli.plan import plan
from stagealign.plan.scale_docs import END, START, with_scale

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


def test_the_tables_are_todays(tmp_path):
    text = DOCS.read_text(encoding="utf-8")
    assert with_scale(text) == text, "run `stagealign plan --docs docs/scale.md`"
    block = text.partition(START)[2].partition(END)[0]
    grid = re.search(r"\| all \| (\d+) \| ([\d,]+) \| ([\d.]+) \|", block)
    assert grid, block
    hours = float(grid[3])
    days = re.search(r"\| NVIDIA H200 SXM \| (\d+) \|(?: [\d,]+ \|){2} ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", block)
    assert float(days[1]) == pytest.approx(hours, abs=0.5)
    assert float(days[2]) == pytest.approx(hours / 24, abs=0.05)
    assert float(days[3]) >= hours / 24 / 8 - 0.05
    stale = tmp_path / "scale.md"
    stale.write_text(text.replace(grid[3], "1.0"), encoding="utf-8")
    plan(docs=stale)
    assert stale.read_text(encoding="utf-8") == text
    with pytest.raises(BadData, match="put them back"):
        with_scale("no marks")
