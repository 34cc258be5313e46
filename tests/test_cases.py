"""Inputs from the field, beside the project: each is right, or refused by name; none ends in a traceback.

They take a quarter of an hour on two cores, so STAGEALIGN_LONG=1 runs them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/cmd.sh"))
pytestmark = [
    pytest.mark.skipif(not NAMES, reason=f"{CASES.parent.name}/cases is not beside the project"),
    pytest.mark.skipif("STAGEALIGN_LONG" not in os.environ, reason="a quarter of an hour; STAGEALIGN_LONG=1 runs it"),
]
WRONG = ("Traceback (most recent call last)", "WRONG", "differs", "IndexError", "ImportError")


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of all cases, as they make their models beside themselves."""
    folder = tmp_path_factory.mktemp("field") / "cases"
    shutil.copytree(CASES, folder)
    return folder


@pytest.mark.parametrize("name", NAMES or [""])
def test_a_case_is_right_or_refused(name, copied, tmp_path):
    command = Path(sys.executable).with_name("stagealign")
    given = os.environ | {"STAGEALIGN": str(command), "PY": sys.executable, "STAGEALIGN_HOME": str(tmp_path)}
    done = subprocess.run(["bash", "cmd.sh"], cwd=copied / name, env=given, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert not [mark for mark in WRONG if mark in said], said[-3000:]
