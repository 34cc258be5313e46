"""How each row is measured and how long it takes; its peers and targets are in `stagealign.report.pages.aims`."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.boundary.machine import hardware
from benchmarks.speed import roof
from benchmarks.speed.turns import ROOT, Given, compared, spread
from stagealign.report.pages.aims import BY_KEY, ROWS, Against, SpeedRow
from stagealign.store.facts import code_version

SCHEMA = 1


@dataclass(frozen=True)
class Way:
    """How a row is measured."""

    function: str
    """`module:name` in this package, imported when the row is measured."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the function."""
    once: float = 5
    """Rough seconds of the checks and other work done once, on two cores of a server's processor."""
    turn: float = 10
    """Rough seconds of one turn of all sides."""
    turns: int | None = None
    """Largest number of turns, for rows that take long; None: as many as asked for."""

    def seconds(self, repeats: int) -> float:
        """Expected seconds of the whole row."""
        return self.once + self.turn * min(repeats, self.turns or repeats)

    def measure(self, given: Given) -> dict[str, Any]:
        """Check and runs of the row."""
        module, _, name = self.function.partition(":")
        measured: dict[str, Any] = getattr(import_module(f"benchmarks.speed.{module}"), name)(given, **self.more)
        return measured


WAYS = {
    "train-14m": Way("training:measure", {"shape": "14m"}, 60, 220),
    "train-160m": Way("training:measure", {"shape": "160m"}, 220, 450),
    "train-135m": Way("training:measure", {"shape": "135m"}, 220, 430),
    "train-1b": Way("training:measure", {"shape": "1b"}, 60, 120),
    "train-8b": Way("training:measure", {"shape": "8b"}, 120, 240),
    "memory-160m": Way("training:longest", {}, 5, 260, turns=1),
    "sweep": Way("sweep:measure", {}, 40, 330, turns=2),
    "reference": Way("reference:measure", {}, 100, 100),
    "sampling": Way("sampling:measure", {}, 30, 260),
    "votes-reviews": Way("votes:pairrm", {"text": "reviews"}, 20, 20),
    "votes-answers": Way("votes:pairrm", {"text": "answers"}, 20, 60),
    "votes-reward": Way("votes:reward", {}, 15, 35),
    "round": Way("rounds:measure", {}, 0, 150),
    "start": Way("start:commands", {}, 8, 8),
    "store": Way("start:keeping", {}, 40, 40),
    "growth-pairs": Way("growth:measure", {"growth": "pairs"}, 240, 0),
    "growth-length": Way("growth:measure", {"growth": "tokens"}, 150, 0),
    "growth-parameters": Way("growth:measure", {"growth": "parameters"}, 90, 0),
    "growth-cells": Way("growth:measure", {"growth": "cells"}, 180, 0),
}
assert list(WAYS) == [row.key for row in ROWS]


def of_device(device: str) -> list[str]:
    """Rows that are measured on this kind of device."""
    return [row.key for row in ROWS if device in row.devices]


def expected(keys: list[str], given: Given) -> float:
    """Seconds that these rows take, roughly."""
    return sum(5 if given.small else WAYS[key].seconds(given.repeats) for key in keys)


def made_of(key: str, given: Given) -> dict[str, Any]:
    """Conditions that a row's numbers may depend on: machine, versions, settings and code."""
    repeats = min(given.repeats, WAYS[key].turns or given.repeats)
    return {
        "schema": SCHEMA,
        "settings": {**asdict(given), "repeats": repeats},
        "hardware": hardware(given.threads) | ({"gpu": _gpu()} if given.device == "cuda" else {}),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "trl", "accelerate")},
        "code": _code(),
    }


def _gpu() -> str:
    shown = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return shown.stdout.strip().splitlines()[0] if shown.stdout.strip() else "none found"


def _code() -> str | None:
    """Hash of the text of the package and of this benchmark; a change makes every row outdated."""
    digest = hashlib.sha256()
    for folder in ("stagealign", "benchmarks/speed", "benchmarks/boundary"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def ready(file: Path, key: str, given: Given) -> bool:
    """Whether `file` holds the row, measured under today's conditions."""
    if not file.is_file():
        return False
    result: Any = json.loads(file.read_text(encoding="utf-8"))
    return bool(result.get("made") == json.loads(json.dumps(made_of(key, given))))


def measure(key: str, given: Given) -> dict[str, Any]:
    """Result of one row: check, runs and their ratios, peak rates and shares of them, machine and versions."""
    row, way = BY_KEY[key], WAYS[key]
    conditions = made_of(key, given)
    own = Given(given.threads, conditions["settings"]["repeats"], given.small, given.device)
    limit = roof.measure(own)
    measured = way.measure(own)
    for name in ("check", "decision"):  # the memory of these processes means nothing
        measured.get(name, {}).pop("peak_mb", None)
    for side, runs in measured.get("runs", {}).items():
        dtype = "bfloat16" if "bf16" in side or "bf16" in row.title else "float32"
        for run in runs:
            _finish(run, limit, dtype)
    known = {"row": key, "title": row.title, "unit": row.unit}
    return {**known, **measured, **_summary(row, measured), "roof": limit, "made": conditions, **code_version()}


def _finish(run: dict[str, Any], limit: dict[str, Any], dtype: str) -> None:
    """Adds speeds and the share of the peak rate to a run, and removes its log-probs."""
    run["per_second"] = round(run["work"] / run["seconds"], 4)
    if "tokens" in run:
        run["tokens_per_second"] = round(run["tokens"] / run["seconds"], 1)
    share = roof.share(run, limit, dtype)
    if share is not None:
        run["roof_percent"] = share
    run.pop("logps", None)


def _summary(row: SpeedRow, measured: dict[str, Any]) -> dict[str, Any]:
    """Ratios of our sides to their peers; for a row without peers, its times."""
    runs = measured.get("runs", {})
    ratios = [
        {"ours": pair.ours, "peer": pair.peer, **compared(runs[pair.peer], runs[pair.ours])}
        for pair in row.against
        if pair.ours in runs and pair.peer in runs
    ]
    times = {name: {k: spread([run[k] for run in runs[name]]) for k in ("seconds", "cpu_seconds")} for name in runs}
    return {"ratios": ratios} if row.against else {"times": times} if row.limits else {}


def write(file: Path, result: dict[str, Any]) -> None:
    """Writes the result to its file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def lines(result: dict[str, Any], device: str) -> list[str]:
    """Lines that the terminal shows for one row."""
    row = BY_KEY[result["row"]]
    out = [f"{row.title}: {_words(result['sizes'])}"]
    if "check" in result:
        out.append(f"  check: {_words(result['check'])}")
    if "decision" in result:
        out.append(f"  decision: {_words(result['decision'])}")
    out += [f"  left out: {name}, {why}" for name, why in result.get("left_out", {}).items()]
    for side, runs in result.get("runs", {}).items():
        out += [f"  {side:<26}{_run(run, result['unit'])}" for run in runs]
    for comparison, ratio in zip(_shown(row, result), result.get("ratios", []), strict=True):
        time, work, aim = ratio["time"], ratio["processor"], comparison.aim(device)
        asked = f"; aim {aim:g}" if aim else ""
        memory = f"; memory {ratio['memory']:g}" if "memory" in ratio else ""
        out.append(
            f"  {comparison.ours} against {comparison.peer}: {time['median']:g}x [{time['least']:g}, {time['most']:g}],"
            f" in processor time {work['median']:g}x [{work['least']:g}, {work['most']:g}]{memory}{asked}"
        )
    for name, most in row.limits if "times" in result else ():
        if name in result["times"]:
            out.append(f"  {name}: {result['times'][name]['seconds']['median']:g} s; aim {most:g} s")
    for point in result.get("points", []):
        out.append(f"  {point['size']:>12,}{point['seconds']:>10.2f} s{point['peak_mb']:>8,} MB")
    if "exponents" in result:
        asked = f"; aim for time: {row.exponent:g}" if row.exponent else ""
        out.append(f"  exponents: {_words(result['exponents'])}{asked}")
    out.append(f"  roof: {_words(result['roof'])}")
    return out


def _shown(row: SpeedRow, result: dict[str, Any]) -> list[Against]:
    """Comparisons of the row that the result holds, in its order."""
    present = [(ratio["ours"], ratio["peer"]) for ratio in result.get("ratios", [])]
    return [comparison for comparison in row.against if (comparison.ours, comparison.peer) in present]


def _run(run: dict[str, Any], unit: str) -> str:
    text = f"{run['seconds']:>9.2f} s {run['cpu_seconds']:>9.2f} s of processor {run['per_second']:>10.3f} {unit}"
    text += f" {run['tokens_per_second']:>9.1f} tokens/s" if "tokens_per_second" in run and unit != "tokens/s" else ""
    text += f" {run['peak_mb']:>7,} MB" if "peak_mb" in run else ""
    return text + (f" {run['roof_percent']:>6.1f}% of the roof" if "roof_percent" in run else "")


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in values.items()) or "-"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_words(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
