"""Joins the parts of a round's samples and labels: one part is labelled while the next is sampled.

Parts follow the order of the prompts, and every candidate has its own random stream. Joined samples of our own sampler
therefore equal those of a single artifact. Scores are equal up to rounding, as the oracle's batches differ.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagealign.base.errors import BadData
from stagealign.data.records import Candidate, Pair, read_rows, sampled_facts, write_rows
from stagealign.store.artifact import Facts, Work
from stagealign.store.record import read_record


def join_candidates(work: Work) -> Facts:
    """Builder of `candidates` from their parts; facts as in the sampler's builder. Raises BadData without any."""
    rows = [
        row for name in _ordered(work.inputs) for row in read_rows(work.inputs[name] / "candidates.jsonl", Candidate)
    ]
    if not rows:
        raise BadData(f"{work.out}: no prompt of any part fits the policy's context; choose shorter prompts")
    write_rows(work.out / "candidates.jsonl", rows)
    return {**_summed(work.inputs), **sampled_facts(rows)}


def join_pairs(work: Work) -> Facts:
    """Builder of `pairs` from the pairs of the parts; facts as in `labels.to_pairs`. Raises BadData without pairs."""
    parts = {name: folder for name, folder in work.inputs.items() if name != "candidates"}
    rows = [row for name in _ordered(parts) for row in read_rows(parts[name] / "pairs.jsonl", Pair)]
    facts = _summed(parts)
    if not rows:
        raise BadData(f"{work.inputs['candidates']}: no usable pair in any part ({facts.get('drops')})")
    write_rows(work.out / "pairs.jsonl", rows)
    return {**facts, "margin": round(float(np.mean([pair.margin for pair in rows])), 4)}


def _ordered(parts: Mapping[str, Path]) -> list[str]:
    """Names of the parts in numerical order: `part1`, `part2`, ..., `part10`."""
    return sorted(parts, key=lambda name: int(name.removeprefix("part")))


def _summed(parts: Mapping[str, Path]) -> Facts:
    """Facts of all parts: counts are added up, other facts are kept if they are equal in all parts."""
    records = [read_record(parts[name]) for name in _ordered(parts)]
    every: list[Facts] = [record["facts"] if record else {} for record in records]
    return {name: total for name in every[0] if (total := _together([facts.get(name) for facts in every])) is not None}


def _together(values: Sequence[Any]) -> Any:
    """Sum of integers, sum by key of count tables, or the common value; None if the values differ."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return sum(values)
    if all(isinstance(value, dict) and all(isinstance(count, int) for count in value.values()) for value in values):
        total: Counter[str] = Counter()
        for value in values:
            total.update(value)
        return dict(total)
    return values[0] if all(value == values[0] for value in values) else None
