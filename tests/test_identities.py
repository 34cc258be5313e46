"""Identity is independent of where code lies: a committed digest of every identity, and no place that is not there."""

import importlib
import json
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.execute.carry_out import place
from stagealign.grid import registry, scales
from stagealign.pipeline import rounds as pipeline
from stagealign.store.results import read_results, stands
from tests.identities import COMMITTED, digests

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_no_identity_has_moved():
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    found = digests()
    moved = [group for group in {**committed, **found} if committed.get(group) != found.get(group)]
    assert not moved, (
        f"identities moved: {moved}; results and kept rows of before no longer stand (tests/identities.py)"
    )


def test_every_place_is_there():
    artifacts = (
        artifact
        for scale in scales.SCALES
        for cell in registry.cells(scale, extras=True)
        for artifact in pipeline.plan_run(cell, 0, capability=True).artifacts.values()
    )
    for code in {artifact.kind.function for artifact in artifacts}:
        module, _, function = code.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), code


def test_archived_results_are_whole_and_stand_for_no_run_of_this_version():
    """Version 0.1.0 sampled and trained differently: its 96 results stay readable, and no run is left out for them."""
    archived = list(read_results(RESULTS / "archive" / "0.1.0", "lab"))
    assert len(archived) == 96
    assert not [result for _, result in archived if isinstance(result, BadData)]
    runs = [pipeline.plan_run(cell, seed) for cell in registry.cells("lab") for seed in cell.scale.seeds]
    assert {place(RESULTS, run).name for run in runs} >= {path.name for path, _ in archived}
    assert not any(stands(place(RESULTS / "archive" / "0.1.0", run), run.rungs) for run in runs)
