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

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData, CannotRun
from stagealign.base.shapes import ANY, NUMBER, SHARE, TEXT, WHOLE, Map, Or, misfit
from stagealign.store.artifact import Artifact
from stagealign.store.checksums import SEAL, broken, sealed
from stagealign.store.files import write_text

SCHEMA = 1
Result = dict[str, Any]
METRIC = {"value": Or(NUMBER), "unit?": TEXT, "n?": Or(WHOLE), "standard_error?": Or(NUMBER), "interval?": Or([NUMBER])}
BOUNDARY = {"score": SHARE, "interval": [SHARE, SHARE], "votes_on?": NUMBER, "votes_off?": NUMBER, "prompts?": WHOLE}
MEASURED = ("gold", "clean_gold", "win_rate", "length", "degenerate", "truncated", "kl")
SPLIT = {f"{name}?": METRIC for name in MEASURED} | {"boundary?": BOUNDARY, "prompts": Map([NUMBER, NUMBER])}
POLICY = {"validation?": SPLIT, "test?": SPLIT}
GAIN = {"validation?": METRIC, "test?": METRIC}
RUNG = {"learning_rate": NUMBER, "state": TEXT, "fingerprint?": TEXT}
DONE = RUNG | {"metrics": POLICY, "gain": GAIN, "clean_gain": GAIN, "kl": Or(METRIC), "training?": Map(ANY)}
TRAINING = {"curve?": [Map(Or(NUMBER))], "pairs_per_second?": Or(NUMBER), "reference?": Or(Map(WHOLE))}
PAIRS = {"pairs?": WHOLE, "margin?": Or(NUMBER), "ties?": WHOLE, "truncated?": WHOLE, "drops?": Map(WHOLE)}
DATA = {
    "metrics?": Map(METRIC),
    "prompts?": WHOLE,
    "candidates?": WHOLE,
    "drops?": Map(WHOLE),
    "agreement?": Map(METRIC),
}
ROUND = {
    "source": TEXT,
    "round?": WHOLE,
    "learning_rate?": NUMBER,
    "start?": POLICY,
    "pairs?": PAIRS,
    "data?": DATA,
    "rungs": [RUNG],
}
MADE = {
    "fingerprint?": TEXT,
    "seconds?": Or(NUMBER),
    "peak_memory_mib?": Or(NUMBER),
    "commit?": Or(TEXT),
    "revision?": TEXT,
}
SAMPLE = {"prompt": TEXT, "text": TEXT, "completions": Map([TEXT])}
SHAPE = {
    "state": TEXT,
    "reason?": Or(TEXT),
    "cell": TEXT,
    "seed": WHOLE,
    "scale": TEXT,
    "model": {"key": TEXT, "name": TEXT, "weights?": TEXT, "note?": Or(TEXT), "checkpoint?": TEXT},
    "method": {"key": TEXT, "name?": TEXT},
    "schedule": TEXT,
    "sources": [TEXT],
    "spec": Map(ANY),
    "claims?": Map(TEXT),
    "scorers?": Map(Map(ANY)),
    "artifacts?": Map(MADE),
    "start?": POLICY,
    "rounds": [ROUND],
    "samples?": [SAMPLE],
}
"""What readers rely on; more may stand there."""
STATES = ("done", "failed", "skipped")


def result_path(folder: Path, scale: str, cell: str, seed: int) -> Path:
    """`<folder>/<scale>/<cell>-seed<k>.json`."""
    return folder / scale / f"{cell}-seed{seed}.json"


def write_result(folder: Path, result: Result) -> Path:
    """Path of the written result; rungs of the same fingerprint that stand there already are kept."""
    path = result_path(folder, result["scale"], result["cell"], result["seed"])
    with _alone(path.parent):
        if path.exists():
            with suppress(BadData):  # running again is how a damaged file is repaired
                _keep_rungs(read_result(path), result)
        write_text(path, json.dumps(sealed(result), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer in a folder at a time, so that none forgets another's rungs; only where its file system has locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CannotRun(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from error
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: damaged ({_why(error)}); {again}") from error
    if isinstance(result, dict) and broken(result):
        raise BadData(f"{path}: damaged (its content changed since it was written); {again}")
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else type(result).__name__
        raise BadData(f"{path}: result schema {found!r}, this version reads {SCHEMA}; {again}")
    result.pop(SEAL, None)
    wrong = _misfit(result)
    if wrong:
        raise BadData(f"{path}: damaged ({wrong}); {again}")
    return result


def _misfit(result: Result) -> str | None:
    """The first entry that is not of the shape above; None where all are."""
    wrong = misfit(result, SHAPE)
    if wrong is None and result["state"] not in STATES:
        wrong = f"state is none of {', '.join(STATES)}"
    for number, entry in enumerate(result["rounds"] if wrong is None else []):
        for place, rung in enumerate(entry["rungs"]):
            where = f"rounds.{number}.rungs.{place}"
            if rung["state"] == "done":
                wrong = (
                    wrong
                    or misfit(rung, DONE, where)
                    or misfit(rung.get("training", {}), TRAINING, f"{where}.training")
                )
    return wrong


def _why(error: Exception) -> str:
    """First line of an error, shortened."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def made_with(results: Path, artifact: Artifact) -> dict[str, list[str]]:
    """Revision of an artifact's source -> cells whose results were made with it; damaged results say nothing.

    `results`: the folder of one scale.
    """
    found: dict[str, list[str]] = {}
    for _, one in read_results(results.parent, results.name):
        entry = {} if isinstance(one, BadData) else one.get("artifacts", {}).get(artifact.path, {})
        if not isinstance(one, BadData) and entry.get("fingerprint") == artifact.fingerprint and entry.get("revision"):
            found.setdefault(entry["revision"], []).append(one["cell"])
    return found


def read_results(folder: Path, scale: str) -> Iterator[tuple[Path, Result | BadData]]:
    """Every result of one scale by file name; a damaged one comes as its error, so that no row is lost in silence."""
    for path in sorted((folder / scale).glob("*-seed*.json")):
        try:
            yield path, read_result(path)
        except BadData as error:
            yield path, error
