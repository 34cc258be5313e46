"""Checks that each row of the speed benchmark ends with a result; a current result is not measured again."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_speed(row, pytestconfig):
    option = pytestconfig.getoption
    words = [f"--{name}={option(name)}" for name in ("device", "repeats", "threads", "out") if option(name) is not None]
    words += ["--small"] * option("small")
    command = [sys.executable, "-m", "benchmarks.speed", "--rows", row, *words]
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        pytest.fail(f"{row}: {done.stderr[-3000:]}", pytrace=False)
