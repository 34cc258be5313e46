"""`pytest benchmarks -k llama3` runs one row of the grid: one item per cell and seed, all from one plan."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stagealign.base.errors import CannotRun, StagealignError, UnknownName
from stagealign.grid import registry, select
from stagealign.grid.cell import Cell
from stagealign.store.results import read_result, result_path

if TYPE_CHECKING:
    from stagealign.plan.plan import Plan


@dataclass(frozen=True)
class Entry:
    """Cell and seed of one test item."""

    cell: Cell
    seed: int

    @property
    def id(self) -> str:
        return f"{self.cell.id}-seed{self.seed}"


def pytest_addoption(parser):
    group = parser.getgroup("stagealign")
    group.addoption("--scale", default="lab", help="smoke, lab or paper; lab by default.")
    group.addoption("--seeds", type=int, help="Number of seeds, counted from 0; by default the scale's own.")
    group.addoption("--results", type=Path, help="Folder of result files; results/ by default.")


def pytest_configure(config):
    try:
        scale = registry.scale(config.getoption("scale"))
    except UnknownName as error:
        raise pytest.UsageError(str(error)) from error
    if (config.getoption("seeds") or 1) < 1:
        raise pytest.UsageError(f"--seeds {config.getoption('seeds')}: at least 1 is needed")
    config.stash[SCALE] = scale
    try:
        config.stash[MATCHES] = select.matcher(config.option.keyword)
    except StagealignError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_ignore_collect(collection_path, config):
    """Ignores the speed rows unless their folder is named: they take hours and are not cells."""
    speed = Path(__file__).resolve().parent / "speed"
    if not collection_path.is_relative_to(speed):
        return None
    named = [(config.invocation_params.dir / text.partition("::")[0]).resolve() for text in config.args]
    return None if any(path.is_relative_to(speed) for path in named) else True


def pytest_report_header(config):
    scale = config.stash[SCALE]
    return f"scale {scale.key}: {scale.name}; seeds {', '.join(map(str, seeds(config)))}; results in {results(config)}"


def pytest_generate_tests(metafunc):
    if "entry" in metafunc.fixturenames:
        config = metafunc.config
        cells, matches = registry.cells(config.stash[SCALE].key, extras=True), config.stash[MATCHES]
        entries = [Entry(cell, seed) for cell in cells for seed in seeds(config)]
        entries = [
            entry
            for entry in entries
            if not entry.cell.extra
            or select.asked_for(entry.cell, matches, (entry.id, metafunc.definition.name, *entry.cell.keywords))
        ]
        metafunc.parametrize("entry", entries, ids=lambda entry: entry.id)


def pytest_itemcollected(item):
    entry = _entry(item)
    if entry:
        item.extra_keyword_matches.update(entry.cell.keywords)


def pytest_collection_finish(session):
    """Keeps the entries that `-k` has left; raises UsageError, before any work, if this machine cannot run them."""
    entries = [entry for item in session.items if (entry := _entry(item))]
    session.config.stash[CHOSEN] = entries
    if entries and session.config.stash[SCALE].on_gpus and not session.config.option.collectonly:
        from stagealign.execute.executors import Execution
        from stagealign.execute.preflight import check_machine
        from stagealign.store.bucket import opened

        store = opened()
        try:
            for plan in plans(session.config, store):
                check_machine(plan, store, Execution())
        except CannotRun as error:
            raise pytest.UsageError(str(error)) from error


def plans(config, store) -> "Iterator[Plan]":
    """Plans of the selected items: one for all cells with the same seeds, so that they share artifacts."""
    from stagealign.execute.carry_out import stands_in
    from stagealign.plan.plan import make_plan

    chosen: dict[str, list[int]] = defaultdict(list)
    for entry in config.stash[CHOSEN]:
        chosen[entry.cell.id].append(entry.seed)
    alike = defaultdict(list)
    for cell, own in chosen.items():
        alike[tuple(own)].append(registry.cell(cell, config.stash[SCALE].key))
    for own, cells in alike.items():
        yield make_plan(cells, own, store, stands=stands_in(results(config)))


@pytest.fixture(scope="session")
def verdict(request):
    """Function from an entry to the reason of its failure, or None; the first use builds all selected items.

    Items with the same seeds share one plan, hence artifacts and workers; progress goes to the terminal.
    """
    from stagealign.cli.run import build
    from stagealign.execute.executors import Execution
    from stagealign.pipeline.rounds import plan_run
    from stagealign.store.bucket import opened

    config = request.config
    scale, folder = config.stash[SCALE], results(config)
    failed: dict[str, str] = {}
    refused = None
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        store = opened()
        for plan in plans(config, store):
            try:
                failed |= build(plan, store, Execution(), folder).failed
            except StagealignError as error:
                refused = str(error)

    def why(entry: Entry) -> str | None:
        goals = plan_run(entry.cell, entry.seed).goals
        broken = [failed[goal.path] for goal in goals if goal.path in failed]
        path = result_path(folder, scale.key, entry.cell.id, entry.seed)
        if broken or refused:
            return broken[0] if broken else refused
        if not path.exists():
            return f"{path}: not written"
        result = read_result(path)
        return None if result["state"] == "done" else f"{result['state']}: {result['reason']}"

    return why


def seeds(config) -> tuple[int, ...]:
    """Seeds by `--seeds`, else those of the scale."""
    count = config.getoption("seeds")
    return config.stash[SCALE].seeds if count is None else tuple(range(count))


def results(config) -> Path:
    """Folder of result files."""
    return config.getoption("results") or config.rootpath / "results"


def _entry(item) -> Entry | None:
    call = getattr(item, "callspec", None)
    return call.params.get("entry") if call else None


SCALE = pytest.StashKey()
MATCHES = pytest.StashKey()
"""Predicate of `-k`; an extra cell is an item only if `-k` names it."""
CHOSEN = pytest.StashKey()
