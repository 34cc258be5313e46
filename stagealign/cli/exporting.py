"""Export of a finished cell's policy as a folder that others can load: weights, tokenizer and model card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData, CannotRun, StagealignError
from stagealign.base.identity import plain
from stagealign.base.version import __version__
from stagealign.data import assets
from stagealign.grid.cell import Cell
from stagealign.pipeline.kinds import TASKS
from stagealign.pipeline.result import describe
from stagealign.pipeline.rounds import plan_run
from stagealign.pipeline.run import Run, Step
from stagealign.report.read.cells import options
from stagealign.store.bucket import opened
from stagealign.store.facts import code_version
from stagealign.store.folder import Store
from stagealign.store.record import RECORD, Record
from stagealign.store.result_types import DoneRungEntry, is_done
from stagealign.store.results import read_result, result_path

INDEX = "model.safetensors.index.json"
CARD = "README.md"
ASSET_BASES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub id of the model that an asset is a copy of."""
METRICS = ("gold", "clean_gold", "win_rate", "kl", "length", "degenerate", "truncated")
"""Metrics of the test split that the model card shows."""


def export(cell: Cell, seed: int, to: Path, results: Path, store: Store | None = None, push: str | None = None) -> Path:
    """Folder with safetensors, tokenizer and model card of a cell's last policy at the recorded learning rate.

    With `push` it is also uploaded to the hub repository of that name, which is created as private. Raises
    StagealignError, before anything is written, if the policy is not built, the folder is not empty or the base's
    licence is not known.
    """
    store = store or opened()
    run = plan_run(cell, seed)
    step = last_step(run)
    record = store.record(step.policy)
    again = f"stagealign run {options(cell)} --seeds {seed + 1}"
    if record is None:
        raise StagealignError(f"{run.id}: its policy is not in the store ({store.folder(step.policy)}); run `{again}`")
    base, licence = base_of(cell)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StagealignError(f"--to {str(to)!r}: exists and is not an empty folder; name a new one")
    token = _hub_token() if push else None
    measured = _measured(run, step, results)
    weights = str(store.facts(run.weights).get("weights", "published"))
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    copy_policy(store.bring(step.policy), part)
    text = card(Exported(run, step, record, base, licence, weights, measured, again))
    (part / CARD).write_text(text, encoding="utf-8")
    if to.exists():
        to.rmdir()
    part.rename(to)
    if push:
        _push(to, push, token)
    return to


def last_step(run: Run) -> Step:
    """Step of the last round at the learning rate recorded for its source."""
    steps = run.rounds[-1]
    rate = run.cell.scale.training.rate(steps[0].source)
    return next(step for step in steps if step.learning_rate == rate)


def base_of(cell: Cell) -> tuple[str, str]:
    """Hub id of the model that the cell starts from, and its licence by the hub's name.

    Raises StagealignError if no licence is known.
    """
    source = cell.checkpoint.source
    if source.startswith("asset:"):
        key = source.removeprefix("asset:")
        base, licence = ASSET_BASES.get(key, key), assets.find(key).licence.lower()
    else:
        base, licence = source, cell.checkpoint.licence
    if not licence:
        raise StagealignError(
            f"{cell.id}: no licence is known for its base {source!r}; look it up and add it to its "
            "checkpoint in stagealign/grid/models.py, as nothing is exported without a licence"
        )
    return base, licence


def copy_policy(policy: Path, to: Path) -> None:
    """Copies weights, configuration and tokenizer; shards get the names that others expect."""
    to.mkdir()
    names: dict[str, str] = {}
    if (policy / INDEX).exists():
        index = json.loads((policy / INDEX).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
        names = {name: f"model-{n:05}-of-{len(shards):05}.safetensors" for n, name in enumerate(shards, 1)}
        index["weight_map"] = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
        (to / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for file in sorted(policy.iterdir()):
        if file.is_file() and file.name not in (RECORD, INDEX):
            shutil.copyfile(file, to / names.get(file.name, file.name))


def _measured(run: Run, step: Step, results: Path) -> DoneRungEntry | None:
    """Entry of the policy's rung in the run's result file; None if there is no file or no rung in it.

    Raises BadData if the rungs are of another policy.
    """
    path = result_path(results, run.cell.scale.key, run.cell.id, run.seed)
    if not path.exists():
        return None
    result = read_result(path)
    rungs = [rung for entry in result["rounds"] for rung in entry["rungs"]]
    own = [rung for rung in rungs if is_done(rung) and rung.get("fingerprint") == step.fingerprint]
    if rungs and not own:
        raise BadData(
            f"{path}: its numbers are of another policy than the store's; run `stagealign run --again "
            f"{options(run.cell)}`"
        )
    return own[0] if own else None


@dataclass(frozen=True)
class Exported:
    """Content of a model card."""

    run: Run
    step: Step
    record: Record
    base: str
    """Hub id of the base model."""
    licence: str
    weights: str
    """Where the starting weights came from."""
    measured: DoneRungEntry | None
    """Numbers of the policy; None if no result has them."""
    again: str
    """Command that rebuilds the policy."""


def card(exported: Exported) -> str:
    """Text of the model card: metadata, origin, data, numbers with intervals, how to rebuild it, and spec."""
    run, step, record, measured = exported.run, exported.step, exported.record, exported.measured
    base, licence, weights, again = exported.base, exported.licence, exported.weights, exported.again
    from huggingface_hub import ModelCardData

    cell = run.cell
    about = ModelCardData(
        license=licence,
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["stagealign", "preference-alignment", cell.method.form, f"schedule:{cell.schedule}"],
    )
    facts: Mapping[str, Any] = record["facts"]
    versions = [f"stagealign {__version__}", f"commit {facts.get('commit') or code_version()['commit'] or 'unknown'}"]
    versions += [f"{name} {version}" for name, version in facts.get("versions", {}).items() if name != "stagealign"]
    sources = "; ".join(f"round {n} on {source.name}" for n, source in enumerate(cell.sources, 1))
    data = TASKS[cell.scale.task].words or cell.scale.task
    origin = "The shape is that of" if weights == "random" else "The weights are derived from"
    lines = [
        "---", about.to_yaml().strip(), "---", "",
        f"# {run.id}", "",
        what_it_is(cell, base, weights), "",
        f"{cell.method.name} ({cell.method.form}, beta {cell.method.beta:g}), {len(cell.sources)} round(s): {sources}.",
        f"Learning rate of the last round: {step.learning_rate:g}. Asked for: {cell.scale.preference.wish}.", "",
        "## Data", "", f"{_sentence(data)}. None of it is in this folder.", "",
        "## Numbers", "", *_numbers(measured, again), "",
        "## Licence", "",
        f"{origin} {base}, licence `{licence}`; its terms go with them.", "",
        "## Make it again", "", f"In a checkout of stagealign, {versions[1]}:", "",
        "```console", "$ pip install -e .", f"$ {again}",
        f"$ stagealign export {cell.id} --scale {cell.scale.key} --seed {run.seed} --to DIR", "```", "",
        f"Policy fingerprint `{record['fingerprint']}`; made with {', '.join(versions)}, on "
        f"{facts.get('hardware')}.", "",
        "## Spec", "", "```json", json.dumps(plain(cell) | {"seed": run.seed}, indent=1, sort_keys=True), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def what_it_is(cell: Cell, base: str, weights: str) -> str:
    """Paragraph on the policy's origin, which says so if it is a stand-in or started from random weights."""
    trained = f"The policy of `{cell.id}` at scale {cell.scale.key} of a reproduction of arXiv 2508.10530."
    if cell.checkpoint.stand_in_for:
        return f"{trained} **It is a {describe(cell)}.** It is not {cell.checkpoint.stand_in_for}, nor trained from it."
    if weights == "random":
        return f"{trained} **It started from random weights in the shape of {base}**: plumbing, not a language model."
    return f"{trained} It was trained from {base}."


def _numbers(measured: DoneRungEntry | None, again: str) -> list[str]:
    """Lines of the table of test metrics with their intervals."""
    if measured is None:
        return [f"Not measured: no result file of this policy was found. `{again}` measures it."]
    test: Mapping[str, Any] = measured["metrics"]["test"]
    rows = {"gain in gold reward over the round's start": measured["gain"]["test"]}
    rows |= {name.replace("_", " "): test[name] for name in METRICS if name in test}
    lines = ["| test split | value | 95% interval | unit | n |", "|---|---|---|---|---|"]
    for name, metric in rows.items():
        value = "not known" if metric.get("value") is None else f"{metric['value']:.3f}"
        between = "not known" if not metric.get("interval") else "[{:.3f}, {:.3f}]".format(*(metric["interval"] or ()))
        lines.append(f"| {name} | {value} | {between} | {metric['unit']} | {metric['n']} |")
    boundary = test.get("boundary")
    if boundary:
        low, high = boundary["interval"]
        row = f"| boundary score | {boundary['score']:.3f} | [{low:.3f}, {high:.3f}] | share of votes won on-policy | "
        lines.append(f"{row}{boundary['prompts']} |")
    return lines


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _hub_token() -> str:
    """Hub token of the user, which is never written. Raises CannotRun if there is none or the hub is off."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise CannotRun("--push: HF_HUB_OFFLINE is set; unset it, or export without --push")
    token = get_token()
    if token is None:
        raise CannotRun("--push: no access token of the hub was found; log in with `hf auth login` or set HF_TOKEN")
    return token


def _push(folder: Path, repository: str, token: str | None) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi(token=token)
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"stagealign {__version__}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StagealignError(f"--push {repository}: {reason}; the folder {folder} is complete") from error
