"""A round's samples in parts: each is labelled while the next is sampled, then they are one again.

The parts follow the prompts' order and every candidate has its own stream of chance, so our own sampler's are together
what one artifact would hold; scores are the same but for rounding, as the oracle reads other texts side by side.
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
    """Builder of `candidates` from their parts; facts as of the engine that sampled them."""
    rows = [
        row for name in _ordered(work.inputs) for row in read_rows(work.inputs[name] / "candidates.jsonl", Candidate)
    ]
    write_rows(work.out / "candidates.jsonl", rows)
    return {**_summed(work.inputs), **sampled_facts(rows)}


def join_pairs(work: Work) -> Facts:
    """Builder of `pairs` from those of the parts; facts as of `labels.to_pairs`. Raises BadData if none is left."""
    parts = {name: folder for name, folder in work.inputs.items() if name != "candidates"}
    rows = [row for name in _ordered(parts) for row in read_rows(parts[name] / "pairs.jsonl", Pair)]
    facts = _summed(parts)
    if not rows:
        raise BadData(f"{work.inputs['candidates']}: no usable pair in any part ({facts.get('drops')})")
    write_rows(work.out / "pairs.jsonl", rows)
    return {**facts, "margin": round(float(np.mean([pair.margin for pair in rows])), 4)}


def _ordered(parts: Mapping[str, Path]) -> list[str]:
    """`part1`, `part2`, ... `part10`."""
    return sorted(parts, key=lambda name: int(name.removeprefix("part")))


def _summed(parts: Mapping[str, Path]) -> Facts:
    """Facts of the parts together: counts added up, other facts kept if all parts share them."""
    records = [read_record(parts[name]) for name in _ordered(parts)]
    every: list[Facts] = [record["facts"] if record else {} for record in records]
    return {name: found for name in every[0] if (found := _together([facts.get(name) for facts in every])) is not None}


def _together(values: Sequence[Any]) -> Any:
    """Sum of whole numbers, sum by key of counts, what all share; None if they differ."""
    if all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        return sum(values)
    if all(isinstance(one, dict) and all(isinstance(count, int) for count in one.values()) for one in values):
        total: Counter[str] = Counter()
        for one in values:
            total.update(one)
        return dict(total)
    return values[0] if all(one == values[0] for one in values) else None
