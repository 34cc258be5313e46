"""The pinned packages have no known hole that `docs/audit.md` does not accept, where a service can be asked."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = {"name": "torch", "version": "2.13.0"}
HOLE = {"id": "PYSEC-2025-1", "aliases": ["CVE-2025-1234"], "fix_versions": []}


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_finding_that_is_not_accepted(audit):
    pytest.importorskip("pip_audit")
    try:
        packages = audit.ask()
    except audit.NoAnswer as error:
        pytest.skip(f"no vulnerability service answered: {error}")
    assert audit.findings(packages, audit.accepted(audit.ACCEPTED.read_text())) == []


def test_a_finding_is_accepted_by_any_of_its_names_for_one_version(audit):
    packages = [PACKAGE | {"vulns": [HOLE]}, {"name": "six", "version": "1", "vulns": []}]
    line = "torch 2.13.0: PYSEC-2025-1, CVE-2025-1234; no fixed version"
    table = "## Accepted findings\n\n| package | names |\n|---|---|\n| torch 2.13.0 | CVE-2025-1234 | local |\n\n"
    assert audit.findings(packages, {}) == [line]
    assert audit.findings(packages, audit.accepted(table)) == []
    for other in (
        table.replace("2.13.0", "2.12.0"),
        table.replace("torch", "six"),
        table.replace("1234", "12345"),
        table.replace("Accepted", "Mended"),
    ):
        assert audit.findings(packages, audit.accepted(other)) == [line]
    mended = HOLE | {"fix_versions": ["2.14"], "aliases": []}
    assert audit.findings([PACKAGE | {"vulns": [mended]}], {}) == ["torch 2.13.0: PYSEC-2025-1; fixed in 2.14"]


def test_a_package_that_was_passed_over_is_a_finding(audit):
    packages = [PACKAGE | {"vulns": []}, {"name": "six", "skip_reason": "not found"}]
    assert audit.findings(packages, {}) == ["six: could not be audited: not found"]


def test_what_the_document_accepts_is_read(audit):
    known = audit.accepted(audit.ACCEPTED.read_text())
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert known, "no row was read"
    assert [pinned for pinned in known if pinned.replace(" ", "==") not in pins] == [], (
        "of a version that is not pinned"
    )


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "ConnectionError: refused"),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', "none of 1 packages could be audited"),
    ],
)
def test_no_answer_is_no_clean_bill(audit, out, words, monkeypatch, capsys):
    told = SimpleNamespace(stdout=out, stderr="noise\nConnectionError: refused\n", returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: told)
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    assert audit.main() == 2
    assert words in capsys.readouterr().err
