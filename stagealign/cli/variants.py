"""Cells that are trained, sampled or evaluated otherwise: what the command line asks for, and what a result says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.base.kind import code_at
from stagealign.grid import registry, samplers, variants
from stagealign.grid.cell import Cell
from stagealign.grid.spec import Engine
from stagealign.store.folder import Store
from stagealign.store.result_types import Result
from stagealign.store.results import read_result, result_path


@dataclass(frozen=True)
class Variant:
    """The options of a command that make other cells of the registry's."""

    peft: str | None = None
    """`lora`, or None."""
    sampler: str = "transformers"
    """A key of `SAMPLERS`."""
    policy_url: str | None = None
    """A server that samples."""
    gold: str | None = None
    """`reward:ID_OR_PATH`."""

    def cells(self, chosen: Sequence[Cell]) -> tuple[list[Cell], str | None]:
        """The cells so changed, and the folder of the reward model where it is a local one.

        Raises StagealignError, before any work, for an unknown word and for what is not here or does not answer.
        """
        cells = variants.sampled_by(variants.adapted(chosen, self.peft), self._engine(chosen))
        return self._evaluated(cells)

    def _engine(self, cells: Sequence[Cell]) -> Engine | None:
        row = samplers.chosen(self.sampler, self.policy_url)
        if not row.probe:
            return None
        engine: Engine = code_at(row.probe)(self.policy_url, cells[0].scale.decoding, Store().home)
        return engine

    def _evaluated(self, cells: Sequence[Cell]) -> tuple[list[Cell], str | None]:
        if self.gold is None:
            return list(cells), None
        kind, _, name = self.gold.partition(":")
        if kind != "reward" or not name:
            raise StagealignError(f"--gold {self.gold!r}: unknown; reward:ID_OR_PATH names a classifier with one logit")
        from stagealign.data.tables import folder_digest
        from stagealign.scoring import reward_model as rewards

        config, _, _ = rewards.check(name)
        parameters = rewards.parameters_of(name, config)
        if not Path(name).is_dir():
            return variants.evaluated_by(cells, self.gold, parameters), None
        folder = Path(name).resolve()
        gold = f"reward:{folder.name}@{folder_digest(folder)}"
        return variants.evaluated_by(cells, gold, parameters), str(folder)


def of_result(result: Result) -> Cell:
    """The cell that a result is of, with the adapters, sampler and gold reward that its spec names.

    Raises UnknownName where the registry has no such model, method or schedule any more.
    """
    spec = result["spec"]
    method, scale = spec["method"]["key"], spec["scale"]
    peft = "lora" if scale["training"].get("peft") else None
    plain = method.removesuffix("_lora") if peft else method
    base = registry.cell(f"{result['model']['key']}-{plain}-{result['schedule']}", result["scale"])
    engine = scale.get("engine")
    (cell,) = variants.sampled_by(variants.adapted([base], peft), Engine(**engine) if engine else None)
    gold = scale["preference"].get("gold") or ""
    return variants.evaluated_by([cell], gold)[0] if gold.startswith("reward:") else cell


def named(cell_id: str, scale: str, seed: int, results: Path) -> Cell:
    """The cell of that id: as its result says, else as the registry has it.

    Raises StagealignError for a name that neither knows: what samples or evaluates stands in results alone.
    """
    path = result_path(results, scale, cell_id, seed)
    if path.exists():
        return of_result(read_result(path))
    if "_lora-" in cell_id:
        return variants.adapted([registry.cell(cell_id.replace("_lora-", "-"), scale)], "lora")[0]
    try:
        return registry.cell(cell_id, scale)
    except UnknownName as error:
        raise StagealignError(
            f"{error}; a cell of another sampler or gold reward is read off {path}, absent"
        ) from error


def options(cell: Cell) -> str:
    """The words by which `run` and `plan` are asked for the cell."""
    plain, engine, gold = cell.method.key, cell.scale.engine, cell.scale.preference.gold_named
    words = [f"-k {cell.model.key}-{plain.removesuffix('_lora')}-{cell.schedule} --scale {cell.scale.key}"]
    if cell.scale.training.peft:
        words.append("--peft lora")
    if engine:
        words.append("--policy-url URL" if samplers.SAMPLERS[engine.key].by_url else f"--sampler {engine.key}")
    if gold:
        words.append(f"--gold reward:{gold}" if "/" in gold else "--gold reward:PATH")  # a folder is known by content
    return " ".join(words)
