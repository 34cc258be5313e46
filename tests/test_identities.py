"""Identity is independent of where code lies: a committed digest of every identity, and no place that is not there."""

import importlib
import json

from stagealign.grid import registry, scales
from stagealign.pipeline import rounds as pipeline
from tests.identities import COMMITTED, digests


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
    for place in {artifact.kind.function for artifact in artifacts}:
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), place
