"""A run's result from what the store holds."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from stagealign.base.errors import Damaged
from stagealign.base.identity import plain
from stagealign.data.records import Candidate, prompt_hash, read_rows
from stagealign.grid.cell import Cell
from stagealign.grid.claims import cited
from stagealign.pipeline.rounds import plan_run
from stagealign.pipeline.run import Run, Step
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.record import Record, remove
from stagealign.store.result_types import (
    ArtifactEntry,
    CapabilityEntry,
    DoneRungEntry,
    GainEntry,
    ModelEntry,
    PairsEntry,
    PolicyEntry,
    Result,
    RoundEntry,
    RungEntry,
    SampleEntry,
    Split,
    SplitEntry,
    TrainingEntry,
)
from stagealign.store.results import SCHEMA

FACTS = ("seconds", "peak_memory_mib", "hardware", "threads", "commit", "dirty", "versions")
"""Fields of a record that a result repeats for each artifact; none of them is identity."""
SCORER_FACTS = ("spearman", "learned_from", "held_out")
PAIRS_FACTS = ("pairs", "ties", "margin", "truncated", "drops")
LEFT_OUT = ("capped", "drops", "dropped")
"""Facts about long prompts that a result repeats for each artifact that samples or scores them, where there are any."""
SAMPLES = 20
"""Test prompts whose completions a result shows."""
SPLITS: tuple[Split, ...] = ("validation", "test")


def result(run: Run, store: Store, fresh: set[str] | None = None) -> Result:
    """The run's result from the store; a rung whose artifacts are not built is `not run`.

    `fresh`: paths of the reference passes that this call ran and that no result has counted yet. Those of this run are
    removed from it, so that each pass counts once as computed and otherwise as reused.
    """
    fresh = set() if fresh is None else fresh
    cell = run.cell
    records = {path: store.record(artifact) for path, artifact in run.artifacts.items()}
    training = cell.scale.training
    rounds = plan_run(cell, run.seed).rounds
    weights = str(store.facts(run.weights).get("weights", "published"))
    scorers = (("oracle", run.oracle), ("gold", run.gold))
    content: Result = {
        **_head(run, "done", None, weights),
        "preference": plain(cell.scale.preference),
        "scorers": {name: _facts(artifact, SCORER_FACTS, store) for name, artifact in scorers},
        "claims": dict(cited(cell)),
        "artifacts": {path: _artifact(record) for path, record in sorted(records.items()) if record},
        "start": _scores(run.start_scores, store),
        "rounds": [_round(steps, training.rate(steps[0].source), store, fresh) for steps in rounds],
        "samples": _samples(run, store),
    }
    if run.abilities:
        content["capability"] = _abilities(run, store)
    return content


def unfinished(run: Run, state: Literal["failed", "skipped"], reason: str) -> Result:
    """The result of a run that failed or was skipped; every table shows it with its reason."""
    return _head(run, state, reason, "not built")


def _head(run: Run, state: Literal["done", "failed", "skipped"], reason: str | None, weights: str) -> Result:
    """A result without rounds: what was run, and how it ended."""
    cell = run.cell
    return {
        "schema": SCHEMA,
        "state": state,
        "reason": reason,
        "cell": cell.id,
        "seed": run.seed,
        "scale": cell.scale.key,
        "model": _model(cell, weights),
        "method": plain(cell.method) | cell.row,
        "schedule": cell.schedule,
        "sources": [source.key for source in cell.sources],
        "spec": plain(cell),
        "rounds": [],
    }


def _model(cell: Cell, weights: str) -> ModelEntry:
    """Entry of the model that the policy started from."""
    stand_in = cell.checkpoint.stand_in_for
    return {
        "key": cell.model.key,
        "name": cell.model.name,
        "checkpoint": cell.checkpoint.source,
        "stand_in_for": stand_in,
        "weights": "stand-in" if stand_in else weights,
        "note": describe(cell),
    }


def describe(cell: Cell) -> str:
    """The weights in words, with a clear mark of a stand-in."""
    checkpoint = cell.checkpoint
    if checkpoint.stand_in_for and checkpoint.sft:
        share = f"{100 * (checkpoint.sft.rotten_share or 0):.0f}%"
        base = "SmolLM2-135M-Instruct after SFT on film reviews"
        return f"stand-in for {checkpoint.stand_in_for}: {base}, {share} of them rotten"
    return checkpoint.source


def _artifact(record: Record) -> ArtifactEntry:
    """Entry of one artifact: its fingerprint and its origin."""
    facts = record["facts"]
    entry: Any = {"fingerprint": record["fingerprint"], **{key: facts.get(key) for key in FACTS}}
    if facts.get("revision"):
        entry["revision"] = facts["revision"]
    entry |= {name: facts[name] for name in LEFT_OUT if facts.get(name)} if "dropped" in facts else {}
    origin: ArtifactEntry = entry
    return origin


def _facts(artifact: Artifact, names: tuple[str, ...], store: Store) -> dict[str, Any]:
    """Facts with these names, as far as the artifact's record has them."""
    return {name: value for name, value in store.facts(artifact).items() if name in names}


def _scores(scores: Artifact, store: Store) -> PolicyEntry:
    metrics: PolicyEntry = _read(scores, "scores.json", store)
    return metrics


def _read(artifact: Artifact, name: str, store: Store) -> Any:
    """JSON of one file of an artifact. Raises Damaged."""
    path = store.file(artifact, name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # `store.file` cannot check old records, which list no files
        raise Damaged(f"{path}: damaged ({error}); rebuild it after {remove(path.parent)}") from error


def _abilities(run: Run, store: Store) -> dict[str, CapabilityEntry]:
    """Capability of the start and of the policy that each round ends with, with both fingerprints."""
    return {
        f"round {number}" if number else "start": {
            **_capability(artifact, store),
            "fingerprint": artifact.fingerprint,
            "policy": artifact.inputs["policy"].fingerprint,
        }
        for number, artifact in enumerate(run.abilities)
    }


def _capability(artifact: Artifact, store: Store) -> CapabilityEntry:
    measured: CapabilityEntry = _read(artifact, "capability.json", store)
    return measured


def _samples(run: Run, store: Store) -> list[SampleEntry]:
    """Completions of `SAMPLES` test prompts by the start and by the policy that each round ends with."""
    training = run.cell.scale.training
    kept = [next(step for step in steps if step.learning_rate == training.rate(step.source)) for steps in run.rounds]
    texts: dict[str, dict[str, list[str]]] = {}
    for name, scores in (("start", run.start_scores), *((f"round {step.number}", step.scores) for step in kept)):
        test = _scores(scores, store)["test"]["prompts"]
        texts_of = scores.inputs.get("answers", scores.inputs["completions"])
        completions = store.file(texts_of, "candidates.jsonl")
        for candidate in read_rows(completions, Candidate):
            if prompt_hash(candidate.prompt) in test:
                texts.setdefault(candidate.prompt, {}).setdefault(name, []).append(candidate.completion)
    chosen = sorted(texts, key=prompt_hash)[:SAMPLES]
    return [{"prompt": prompt_hash(text), "text": text, "completions": texts[text]} for text in chosen]


def _round(steps: tuple[Step, ...], recorded: float, store: Store, fresh: set[str]) -> RoundEntry:
    """Entry of one round; `recorded` is the learning rate that later rounds continue from."""
    first = steps[0]
    start = _scores(first.start_scores, store)
    pairs: Any = _facts(first.pairs, PAIRS_FACTS, store)
    for artifact in (first.pairs.inputs["candidates"], first.reference):
        facts: Mapping[str, Any] = store.facts(artifact)
        if facts.get("dropped"):  # drops by other names are not of long prompts
            pairs["drops"] = {**pairs.get("drops", {}), **facts["drops"]}
    entry: PairsEntry = pairs
    return {
        "round": first.number,
        "source": first.source.key,
        "learning_rate": recorded,
        "start": start,
        "pairs": entry,
        "data": _read(first.data, "data.json", store),
        "rungs": [_rung(step, start, store, fresh) for step in steps],
    }


def _rung(step: Step, start: PolicyEntry, store: Store, fresh: set[str]) -> RungEntry:
    """Entry of one learning rate."""
    policy = store.record(step.policy)
    if policy is None or store.record(step.scores) is None:
        return {"learning_rate": step.learning_rate, "fingerprint": step.fingerprint, "state": "not run"}
    metrics = _scores(step.scores, store)
    rung: DoneRungEntry = {
        "learning_rate": step.learning_rate,
        "fingerprint": step.fingerprint,
        "state": "done",
        "metrics": metrics,
        "gain": _gain(start, metrics, 0),
        "clean_gain": _gain(start, metrics, 1),
        "kl": metrics["test"]["kl"],
        "training": _training(policy["facts"], _forwards(step.reference, store, fresh)),
    }
    return rung


def _gain(before: PolicyEntry, after: PolicyEntry, place: int) -> GainEntry:
    """Gain by split; `place` of a prompt's golds: 0 for gold reward, 1 for clean gold reward."""
    from stagealign.stats.statistics import paired_gain

    gain: GainEntry = {}
    for split in SPLITS:
        if split in after:
            now, then = (_column(metrics[split], place) for metrics in (after, before))
            metric: Any = paired_gain(now, then, after[split]["gold"]["unit"])
            gain[split] = metric
    return gain


def _column(metrics: SplitEntry, place: int) -> dict[str, float]:
    """Prompt hash -> gold reward or clean gold reward."""
    return {prompt: golds[place] for prompt, golds in metrics["prompts"].items()}


def _forwards(reference: Artifact, store: Store, fresh: set[str]) -> dict[str, int]:
    """Forwards of the reference model: `computed` if this call ran them, else `reused`. Takes the pass from `fresh`."""
    facts: Mapping[str, Any] = store.facts(reference)
    forwards = facts.get("forwards", 0)
    computed = forwards if reference.path in fresh else 0
    fresh.discard(reference.path)
    return {"computed": computed, "reused": forwards - computed}


def _training(facts: Mapping[str, Any], forwards: dict[str, int]) -> TrainingEntry:
    """Course of a training run from the facts of its policy."""
    training: TrainingEntry = {
        "curve": facts["curve"],
        "pairs_per_second": round(facts["pairs"] / max(facts["seconds"], 0.01), 2),
        "cut": facts["cut"],
        "reference": forwards,
    }
    if "lowered" in facts:
        training["lowered"] = facts["lowered"]
    return training
