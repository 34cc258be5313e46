"""It ran: each cell of the grid with each seed ends with a result. Whether it reproduced is `test_claims.py`."""

import pytest


def test_cell(entry, verdict):
    reason = verdict(entry)
    if reason:
        pytest.fail(f"{entry.id}: {reason}", pytrace=False)
