"""Variants of the registry's cells, with other training, sampling or evaluation: from options and from results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.base.kind import code_at
from stagealign.grid import registry, samplers, variants
from stagealign.grid.cell import Cell
from stagealign.grid.spec import Engine
from stagealign.report.read.cells import of_result
from stagealign.store.folder import Store
from stagealign.store.results import read_result, result_path


@dataclass(frozen=True)
class Variant:
    """Options of a command that turn the registry's cells into variants."""

    peft: str | None = None
    """`lora`, or None."""
    sampler: str = "transformers"
    """A key of `SAMPLERS`."""
    policy_url: str | None = None
    """Address of a server that samples."""
    gold: str | None = None
    """`reward:ID_OR_PATH`."""

    def cells(self, chosen: Sequence[Cell]) -> tuple[list[Cell], str | None]:
        """Variants of these cells, and the folder of the reward model if it is a local one.

        Raises StagealignError, before any work, for an unknown option value, a missing model or a silent server.
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


def named(cell_id: str, scale: str, seed: int, results: Path) -> Cell:
    """Cell with this id, from its result if there is one, else from the registry.

    Raises StagealignError for an unknown id. Cells of another sampler or gold reward are known from results alone.
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
            f"{error}; a cell of another sampler or gold reward is read from its result, but {path} is missing"
        ) from error
