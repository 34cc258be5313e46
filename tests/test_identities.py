"""Identity is independent of where code lies: a committed digest of every identity, and no place that is not there."""

import importlib
import json
from pathlib import Path

from stagealign.execute.carry_out import place
from stagealign.grid import registry, scales
from stagealign.pipeline import rounds as pipeline
from stagealign.store.results import stands
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


def test_all_committed_results_still_stand():
    standing = [
        place(RESULTS, run).name
        for cell in registry.cells("lab")
        for run in (pipeline.plan_run(cell, seed) for seed in cell.scale.seeds)
        if stands(place(RESULTS, run), run.rungs)
    ]
    assert len(standing) == 96
