"""Checks that each cell ends with a result for each seed; `test_claims.py` checks what the results show."""

import pytest


def test_cell(entry, verdict):
    reason = verdict(entry)
    if reason:
        pytest.fail(f"{entry.id}: {reason}", pytrace=False)
