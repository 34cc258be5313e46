"""The cell that a result file is of, and the words that name it on a command line."""

from stagealign.base.errors import StagealignError
from stagealign.grid import registry, samplers, variants
from stagealign.grid.cell import Cell
from stagealign.grid.spec import Engine
from stagealign.store.result_types import Result


def of_result(result: Result) -> Cell:
    """Cell of a result, with the adapters, sampler and gold reward of its spec.

    Raises UnknownName if the registry no longer has its model, method or schedule.
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


def options(cell: Cell) -> str:
    """Options with which `run` and `plan` choose the cell."""
    plain, engine, gold = cell.method.key, cell.scale.engine, cell.scale.preference.gold_named
    words = [f"-k {cell.model.key}-{plain.removesuffix('_lora')}-{cell.schedule} --scale {cell.scale.key}"]
    if cell.scale.training.peft:
        words.append("--peft lora")
    if engine:
        words.append("--policy-url URL" if samplers.SAMPLERS[engine.key].by_url else f"--sampler {engine.key}")
    if gold:
        words.append(f"--gold reward:{gold}" if "/" in gold else "--gold reward:PATH")  # a folder is known by content
    return " ".join(words)


def words_for(result: Result) -> str:
    """The words by which `run` is asked for a result's cell; for a cell that the registry lacks now, its id."""
    try:
        return options(of_result(result))
    except (StagealignError, KeyError, TypeError, AttributeError):  # of another version, or with a field missing
        return f"-k {result.get('cell')} --scale {result.get('scale')}"
