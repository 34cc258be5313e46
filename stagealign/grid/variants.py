"""Variants of cells: with adapters, another sampler or another gold reward."""

from collections.abc import Iterable
from dataclasses import replace

from stagealign.base.errors import BadSpec, StagealignError
from stagealign.grid.cell import Cell
from stagealign.grid.recipes import HANDBOOK
from stagealign.grid.spec import Engine, Lora

LORA_RATE = {"paper": 5e-6}
"""Learning rate of adapters by scale, if the full rate would hardly move them (QLoRA recipe of the handbook)."""


def adapted(chosen: Iterable[Cell], peft: str | None) -> list[Cell]:
    """The cells with `--peft`. They have ids of their own, such as `zephyr-dpo_lora-1on`, as their numbers differ."""
    cells = list(chosen)
    if peft is None:
        return cells
    if peft != "lora":
        raise StagealignError(f"--peft {peft!r}: unknown; the one choice is lora")
    return [_with_lora(cell) for cell in cells]


def _with_lora(cell: Cell) -> Cell:
    method = replace(cell.method, key=f"{cell.method.key}_lora", name=f"{cell.method.name}, LoRA")
    training = replace(cell.scale.training, peft=Lora(), assumed={**cell.scale.training.assumed, "peft": HANDBOOK})
    if cell.scale.key in LORA_RATE:
        rate = LORA_RATE[cell.scale.key]
        training = replace(training, ladder=(rate,), learning_rate=dict.fromkeys(training.learning_rate, rate))
    return replace(cell, method=method, scale=replace(cell.scale, training=training))


def evaluated_by(chosen: Iterable[Cell], gold: str, parameters: float = 0.0) -> list[Cell]:
    """The cells with another gold reward, such as `reward:NAME`. They have ids of their own, as their numbers differ.

    `parameters`: number of its weights, for cost estimates; 0 if unknown. Training is the same and shared. Raises
    BadSpec if the gold reward is the oracle that labels the pairs.
    """
    cells = []
    for cell in chosen:
        preference = replace(cell.scale.preference, gold=gold, gold_parameters=parameters)
        if preference.gold_named is not None and preference.gold_named == cell.scale.oracle_weights:
            raise BadSpec(f"--gold {gold}: it is the oracle that labels the training pairs; name another scorer")
        evaluation = replace(cell.scale.evaluation, judging=preference.gold_kinds.judging)
        cells.append(replace(cell, scale=replace(cell.scale, preference=preference, evaluation=evaluation)))
    return cells


def sampled_by(chosen: Iterable[Cell], engine: Engine | None) -> list[Cell]:
    """The cells with another sampler. They have ids of their own, such as `zephyr-dpo_vllm-1on`."""
    return [replace(cell, scale=replace(cell.scale, engine=engine)) if engine else cell for cell in chosen]
