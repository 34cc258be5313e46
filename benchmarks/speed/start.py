"""Start-up times of commands, each in a separate process, and times of store and report at the size of a grid."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.turns import ROOT, Given, Run, child, clock

ARTIFACTS, RESULTS = 10_000, 1_000
PATH = "benchmarks.speed.start"


def commands(given: Given) -> dict[str, Any]:
    """Times of the commands, and the names of those that this version lacks."""
    from stagealign.cli.app import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    calls = {
        "stagealign list": ["stagealign.cli.app", "list"],
        "stagealign plan": ["stagealign.cli.app", "plan"],
        "pytest benchmarks --collect-only": ["pytest", "benchmarks", "--collect-only", "-q"],
    }
    absent = [name for name in calls if name.startswith("stagealign ") and name.partition(" ")[2] not in known]
    chosen = {name: words for name, words in calls.items() if name not in absent}
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    for words in chosen.values():  # fills the caches of files and of compiled modules
        call(words)
    for _ in range(given.repeats):
        for name, words in chosen.items():
            runs[name].append(call(words))
    left_out = dict.fromkeys(absent, "this version has no such command")
    return {"sizes": {}, "check": {"exit_code": 0}, "runs": runs, "left_out": left_out}


def call(words: Sequence[str]) -> Run:
    """Seconds and processor seconds of one command in a separate process."""
    command = [sys.executable, "-c", "from stagealign.cli.app import main; main()", *words[1:]]
    if words[0] == "pytest":
        command = [sys.executable, "-m", *words]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if running.returncode:
            out.seek(0)
            raise RuntimeError(f"{' '.join(words)}: ended with {running.returncode}\n{out.read()[-2000:].decode()}")
    return {"seconds": round(seconds, 3), "cpu_seconds": round(used.ru_utime + used.ru_stime, 3), "work": 1}


def keeping(given: Given) -> dict[str, Any]:
    """Times to open artifacts, and to build a report over results."""
    artifacts, results = (100, 12) if given.small else (ARTIFACTS, RESULTS)
    runs: dict[str, list[Run]] = {"open 10,000 artifacts": [], "report over 1,000 results": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sizes = {"artifacts": fill_store(place / "home", artifacts), "results": fill(place / "results", results)}
        for _ in range(given.repeats):
            for name, function in zip(runs, ("opened", "reported"), strict=True):
                runs[name].append(child(f"{PATH}:{function}", given, folder=folder, count=artifacts))
    return {"sizes": sizes, "check": {"made_up": "results and records of the real shape"}, "runs": runs}


def _artifacts(count: int) -> list[Any]:
    from stagealign.base.kind import Kind
    from stagealign.store.artifact import Artifact

    start = Artifact("start", Kind("none:none", price="free"))
    params = {"learning_rate": 1e-4, "training": {"batch": 8, "epochs": 1}, "method": {"form": "sigmoid", "beta": 0.1}}
    return [
        Artifact(f"lab/{n % 100}/{n}/policy", Kind("none:none", price="free"), {**params, "seed": n}, {"policy": start})
        for n in range(count)
    ]


def fill_store(home: Path, count: int) -> int:
    """Writes records of `count` artifacts as the store does; returns `count`."""
    from stagealign.store.facts import surroundings
    from stagealign.store.record import RECORD

    facts = {**surroundings(), "seconds": 1.0, "pairs": 128}
    for artifact in _artifacts(count):
        folder = home / artifact.path
        folder.mkdir(parents=True)
        known = {"fingerprint": artifact.fingerprint, "identity": artifact.identity}
        record = {**known, "inputs": {"policy": "start"}, "facts": facts}
        (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return count


def opened(given: Given, folder: str, count: int) -> Run:
    """Time to define `count` artifacts and open their records."""
    from stagealign.store.folder import Store

    with clock() as took:
        store = Store(Path(folder) / "home")
        present = sum(store.record(artifact) is not None for artifact in _artifacts(count))
    assert present == count
    return {**took, "work": 1}


def fill(folder: Path, count: int) -> int:
    """Writes `count` made-up results of the grid, from the factory of the tests; returns `count`."""
    from stagealign.grid import registry
    from stagealign.store.results import write_result

    factory = _factory()
    cells = registry.cells("lab")
    for number in range(count):
        write_result(folder, factory(cells[number % len(cells)].id, number // len(cells)))
    return count


def _factory() -> Callable[[str, int], Any]:
    """Function `result` of tests/factories/factory_results.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location(
        "factory_results", ROOT / "tests" / "factories" / "factory_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    factory: Callable[[str, int], Any] = module.result
    return factory


def reported(given: Given, folder: str, count: int) -> Run:
    """Time to build a whole report, without writing it."""
    from stagealign.report import build as report

    with clock() as took:
        report.build(Path(folder) / "results", "lab")
    return {**took, "work": 1}
