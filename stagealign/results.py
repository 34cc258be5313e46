"""One small JSON file a run: what a cell with one seed gave. Merged by copying; the report reads nothing else.

Shape (all numbers are of this run; a metric is `{"value", "unit", "n", "standard_error", "interval"}`):

    schema, state ("done" | "failed" | "skipped"), reason, cell, seed, scale
    model       key, name, checkpoint, stand_in_for, weights ("published" | "stand-in" | "random"), note
    method      the Method spec        schedule    "2off_on"        sources    ["off", "on"]
    preference  the Preference spec    scorers     held-out quality of oracle and gold reward
    spec        the whole cell as identity
    claims      key -> fingerprint of the claims that this result helps to judge, as they stood at the run
    artifacts   path -> fingerprint, seconds, peak_memory_mib, hardware, threads, commit, dirty, versions
    start       policy metrics of the policy before round 1
    rounds      one entry a round:
        round, source, learning_rate (the recorded one), start (policy metrics before this round)
        pairs       pairs, margin (mean, oracle points), ties, truncated, drops by reason
        data        what the round's data is like; absent in results of before it was measured:
            prompts, candidates, drops by reason (prompts left out)
            metrics     metric by name, over prompts; without a value it has a `reason`:
                        distinct_1, distinct_2 (share of different n-grams among a prompt's candidates),
                        self_bleu (0 to 1, high means alike), embedding (mean cosine distance by the encoder),
                        surprise, surprise_gap (nats a token under the round's start: mean of the pair, distance of
                        the two), quality (percent of comparisons with the prompt's static candidates won under the
                        oracle; 50 for those themselves), length, length_gap (words; chosen minus rejected),
                        margin (oracle points), ties, duplicates, repeats (shares: pairs of margin 0, prompts with
                        equal candidates, candidates whose text another prompt has too)
            agreement   "measure, measure" -> rank correlation over prompts {value, n}, more diverse counted up
        rungs       one entry a learning rate of the ladder (earlier rounds have the recorded one only):
            learning_rate, state ("done" | "not run")
            metrics     policy metrics after the round
            gain        split -> metric: gold reward minus that of the round's start, paired by prompt
            clean_gain  the same, a degenerate completion counted as the worst reward
            kl          metric: to the round's start, nats a completion
            training    curve of {step, loss, margin, accuracy, grad_norm, kl}, pairs_per_second, reference
                        {computed, reused} forwards; lowered: the micro-batch that memory allowed, where less
    seal        checksum of all the rest, by which a damaged file is noticed; absent in results of before it was written
    samples     one entry for each of 20 test prompts: prompt (hash), text, completions {"start" | "round N": texts} of
                the policies that the run's rounds start from and end with, at the recorded learning rates
    capability  absent where it was not asked for: "start" | "round N" -> of the policies that `samples` shows:
        fingerprint, policy (fingerprints of the measurement and of the policy)
        tasks       task -> items, shots, cut (requests longer than the model's context), drops by reason
        metrics     "<task> <metric>" -> metric over items, with `better` ("higher" | "lower")
        items       "<task> <metric>" -> {item hash: value}, so that two policies are compared item by item
    policy metrics, by split ("validation", "test"):
        gold, clean_gold, win_rate, length, degenerate, truncated, boundary {score, interval, votes_on, votes_off,
        ties, top_score, prompts}, prompts {prompt hash: [gold, clean gold]} (means over the prompt's completions);
        collapsed, only where the policy broke down: why; win_rate then has no value and the reason
"""

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from stagealign.errors import BadData
from stagealign.seals import SEAL, broken, sealed

SCHEMA = 1
Result = dict[str, Any]


def result_path(folder: Path, scale: str, cell: str, seed: int) -> Path:
    """`<folder>/<scale>/<cell>-seed<k>.json`."""
    return folder / scale / f"{cell}-seed{seed}.json"


def write_result(folder: Path, result: Result) -> Path:
    """Path of the written result; rungs of the same fingerprint that stand there already are kept."""
    path = result_path(folder, result["scale"], result["cell"], result["seed"])
    if path.exists():
        with suppress(BadData):  # running again is how a damaged file is repaired
            _keep_rungs(read_result(path), result)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(sealed(result), indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _keep_rungs(old: Result, new: Result) -> None:
    """Puts the rungs that `old` has done and `new` has not run into `new`, where both mean the same.

    A rung of both keeps the count of reference forwards of the call that computed them: each counts as computed once.
    """
    new["artifacts"] = old.get("artifacts", {}) | new.get("artifacts", {})
    _keep_capability(old, new)
    if "claims" in old:
        new["claims"] = new.get("claims", {}) | old["claims"]  # as they stood when the numbers were made
    for before, after in zip(old.get("rounds", []), new.get("rounds", []), strict=False):
        done = {rung["fingerprint"]: rung for rung in before["rungs"] if rung["state"] == "done"}
        after["rungs"] = [
            done.get(rung["fingerprint"], rung) if rung["state"] == "not run" else rung for rung in after["rungs"]
        ]
        for rung in after["rungs"]:
            counts = [one.get("training", {}).get("reference") for one in (done.get(rung["fingerprint"], {}), rung)]
            if all(counts) and counts[0]["computed"] > counts[1]["computed"]:
                rung["training"]["reference"] = counts[0]


def _keep_capability(old: Result, new: Result) -> None:
    """Puts the capability entries of `old` that are of today's policies into a `new` that has none of its own."""
    policies = {made["fingerprint"] for made in new["artifacts"].values() if "fingerprint" in made}
    found = {name: one for name, one in old.get("capability", {}).items() if one["policy"] in policies}
    if found | new.get("capability", {}):
        new["capability"] = found | new.get("capability", {})


def stands(path: Path, rungs: set[str], measured: Collection[str] = ()) -> bool:
    """Whether a done result with all of these rungs and capability entries (fingerprints) stands there.

    It may come from whichever machine.
    """
    try:
        old = read_result(path)
    except (FileNotFoundError, BadData):
        return False
    known = {one["fingerprint"] for one in old.get("capability", {}).values()}
    return old["state"] == "done" and rungs <= done_rungs(old) and known.issuperset(measured)


def says_all(path: Path, new: Result) -> bool:
    """Whether the result that stands there has every entry that `new` has: an older version may have written less."""
    old = read_result(path)
    rounds = zip(old["rounds"], new["rounds"], strict=True)
    return new.keys() <= old.keys() and all(now.keys() <= before.keys() for before, now in rounds)


def done_rungs(result: Result) -> set[str]:
    """Fingerprints of the rungs that the result has measured."""
    rungs = (rung for entry in result["rounds"] for rung in entry["rungs"])
    return {rung["fingerprint"] for rung in rungs if rung["state"] == "done"}


def read_result(path: Path) -> Result:
    """One run's result.

    Raises BadData for a damaged file or another schema, with the command that makes it again.
    """
    again = f"run it again: `stagealign run --scale {path.parent.name} -k {path.stem.rpartition('-seed')[0]}`"
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadData(f"{path}: damaged ({error}); {again}") from error
    if isinstance(result, dict) and broken(result):
        raise BadData(f"{path}: damaged (its content changed since it was written); {again}")
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else type(result).__name__
        raise BadData(f"{path}: result schema {found!r}, this version reads {SCHEMA}; {again}")
    result.pop(SEAL, None)
    return result


def read_results(folder: Path, scale: str) -> Iterator[tuple[Path, Result | BadData]]:
    """Every result of one scale by file name; a damaged one comes as its error, so that no row is lost in silence."""
    for path in sorted((folder / scale).glob("*-seed*.json")):
        try:
            yield path, read_result(path)
        except BadData as error:
            yield path, error
