"""A run's result from what the store holds."""

import json
from collections.abc import Mapping
from typing import Any

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
from stagealign.store.results import SCHEMA, Result

FACTS = ("seconds", "peak_memory_mib", "hardware", "threads", "commit", "dirty", "versions")
"""What a result tells of how each artifact was made; none of it is identity."""
SAMPLES = 20
"""Test prompts whose completions a result shows."""


def result(run: Run, store: Store, fresh: set[str] | None = None) -> Result:
    """The run's result from the store; rungs whose artifacts are not built are `not run`.

    `fresh` names reference passes that this call ran and that no result has claimed yet; those of this run are taken
    out, so that each pass counts as computed once and as reused by all others.
    """
    fresh = set() if fresh is None else fresh
    cell = run.cell
    records = {path: store.record(artifact) for path, artifact in run.artifacts.items()}
    complete = plan_run(cell, run.seed)
    training = cell.scale.training
    rounds = [_round(steps, training.rate(steps[0].source), store, fresh) for steps in complete.rounds]
    weights = str(store.facts(run.weights).get("weights", "published"))
    return {
        "schema": SCHEMA,
        "state": "done",
        "reason": None,
        "cell": cell.id,
        "seed": run.seed,
        "scale": cell.scale.key,
        "model": _model(cell, weights),
        "method": plain(cell.method) | cell.row,
        "schedule": cell.schedule,
        "sources": [source.key for source in cell.sources],
        "preference": plain(cell.scale.preference),
        "scorers": {
            name: {
                key: value for key, value in store.facts(a).items() if key in ("spearman", "learned_from", "held_out")
            }
            for name, a in (("oracle", run.oracle), ("gold", run.gold))
        },
        "spec": plain(cell),
        "claims": dict(cited(cell)),
        "artifacts": {path: _made(record) for path, record in sorted(records.items()) if record},
        "start": _scores(run.start_scores, store),
        "rounds": rounds,
        "samples": _samples(run, store),
        **({"capability": _abilities(run, store)} if run.abilities else {}),
    }


def unfinished(run: Run, state: str, reason: str) -> Result:
    """A result for a run that failed or was skipped: it stays in every table, with its reason."""
    cell = run.cell
    return {
        "schema": SCHEMA,
        "state": state,
        "reason": reason,
        "cell": cell.id,
        "seed": run.seed,
        "scale": cell.scale.key,
        "model": _model(cell, "not built"),
        "method": plain(cell.method) | cell.row,
        "schedule": cell.schedule,
        "sources": [source.key for source in cell.sources],
        "spec": plain(cell),
        "rounds": [],
    }


def _model(cell: Cell, weights: str) -> dict[str, Any]:
    """The result's entry on what the policy started from."""
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
    """What the weights are, in words; a stand-in is called one."""
    checkpoint = cell.checkpoint
    if checkpoint.stand_in_for and checkpoint.sft:
        share = f"{100 * (checkpoint.sft.rotten_share or 0):.0f}%"
        base = "SmolLM2-135M-Instruct after SFT on film reviews"
        return f"stand-in for {checkpoint.stand_in_for}: {base}, {share} of them rotten"
    return checkpoint.source


def _made(record: Record) -> dict[str, Any]:
    """One artifact's entry of the result: what it is and how it was made."""
    facts = record["facts"]
    resolved = {"revision": facts["revision"]} if facts.get("revision") else {}
    return {"fingerprint": record["fingerprint"], **resolved} | {key: facts.get(key) for key in FACTS}


def _scores(scores: Artifact, store: Store) -> dict[str, Any]:
    return _read(scores, "scores.json", store)


def _read(artifact: Artifact, name: str, store: Store) -> dict[str, Any]:
    path = store.file(artifact, name)
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of a record from before files were listed
        raise Damaged(f"{path}: damaged ({error}); build it anew after {remove(path.parent)}") from error
    return loaded


def _abilities(run: Run, store: Store) -> dict[str, Any]:
    """Capability of the start and of the policy that each round ends with, each with what it is known by."""
    return {
        f"round {number}" if number else "start": {
            "fingerprint": artifact.fingerprint,
            "policy": artifact.inputs["policy"].fingerprint,
            **_read(artifact, "capability.json", store),
        }
        for number, artifact in enumerate(run.abilities)
    }


def _samples(run: Run, store: Store) -> list[dict[str, Any]]:
    """Completions of `SAMPLES` test prompts by the start and by the policy that each round ends with."""
    rates = run.cell.scale.training.learning_rate
    kept = [next(s for s in steps if s.learning_rate == rates[s.source.key]) for steps in run.rounds]
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


def _round(steps: tuple[Step, ...], recorded: float, store: Store, fresh: set[str]) -> dict[str, Any]:
    first = steps[0]
    start = _scores(first.start_scores, store)
    return {
        "round": first.number,
        "source": first.source.key,
        "learning_rate": recorded,
        "start": start,
        "pairs": {
            key: value
            for key, value in store.facts(first.pairs).items()
            if key in ("pairs", "ties", "margin", "truncated", "drops")
        },
        "data": _read(first.data, "data.json", store),
        "rungs": [_rung(step, start, store, fresh) for step in steps],
    }


def _rung(step: Step, start: dict[str, Any], store: Store, fresh: set[str]) -> dict[str, Any]:
    """One learning rate's entry of the result."""
    rung: dict[str, Any] = {
        "learning_rate": step.learning_rate,
        "fingerprint": step.fingerprint,
    }
    policy = store.record(step.policy)
    if policy is None or store.record(step.scores) is None:
        return rung | {"state": "not run"}
    from stagealign.stats.statistics import paired_gain

    metrics = _scores(step.scores, store)
    gains: dict[str, dict[str, Any]] = {"gain": {}, "clean_gain": {}}
    for split in metrics:
        for place, name in enumerate(gains):
            after = {key: values[place] for key, values in metrics[split]["prompts"].items()}
            before = {key: values[place] for key, values in start[split]["prompts"].items()}
            gains[name][split] = paired_gain(after, before, metrics[split]["gold"]["unit"])
    trained: Mapping[str, Any] = policy["facts"]
    reference: Mapping[str, Any] = store.facts(step.reference)
    forwards = reference.get("forwards", 0)
    computed = forwards if step.reference.path in fresh else 0
    fresh.discard(step.reference.path)
    return rung | {
        "state": "done",
        "metrics": metrics,
        **gains,
        "kl": metrics["test"]["kl"],
        "training": {
            "curve": trained["curve"],
            "pairs_per_second": round(trained["pairs"] / max(trained["seconds"], 0.01), 2),
            "cut": trained["cut"],
            "reference": {"computed": computed, "reused": forwards - computed},
            **{key: trained[key] for key in ("lowered",) if key in trained},
        },
    }
