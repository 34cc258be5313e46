"""Known holes of the pinned packages: pip-audit over `constraints.txt`, less what `docs/audit.md` accepts by name.

Exit code 0 where every finding is accepted, 1 where one is not, 2 where no service answered: that is no clean bill.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = ROOT / "docs" / "audit.md"
NAME = re.compile(r"\b(?:CVE-\d{4}-\d+|PYSEC-\d{4}-\d+|GHSA(?:-[0-9a-z]{4}){3})\b")
COMMAND = (sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip",
           "--format", "json", "--progress-spinner", "off", "--timeout", "10")  # fmt: skip


class NoAnswer(Exception):
    """No service told of any package."""


def ask(more: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """What pip-audit found, a package an entry. Raises NoAnswer."""
    done = subprocess.run([*COMMAND, *more], cwd=ROOT, capture_output=True, text=True)
    try:
        packages: list[Mapping[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise NoAnswer(done.stderr.strip().rpartition("\n")[2] or f"pip-audit ended with {done.returncode}") from None
    if all("skip_reason" in one for one in packages):
        raise NoAnswer(f"none of {len(packages)} packages could be audited")
    return packages


def accepted(text: str) -> dict[str, set[str]]:
    """`package version` -> names of its findings, from the table under `Accepted findings`."""
    section = text.partition("## Accepted findings\n")[2].partition("\n## ")[0]
    rows = (line.split("|") for line in section.splitlines() if NAME.search(line))
    return {cells[1].strip(): set(NAME.findall(cells[2])) for cells in rows}


def findings(packages: Sequence[Mapping[str, Any]], known: Mapping[str, set[str]]) -> list[str]:
    """A line for each package that was not audited, and each finding that is not accepted for its exact version."""
    found = []
    for package in packages:
        if "skip_reason" in package:
            found.append(f"{package['name']}: could not be audited: {package['skip_reason']}")
            continue
        pinned = f"{package['name']} {package['version']}"
        for one in package["vulns"]:
            names, fixed = [one["id"], *one.get("aliases", ())], ", ".join(one["fix_versions"])
            if not known.get(pinned, set()) & set(names):
                found.append(f"{pinned}: {', '.join(names)}; {f'fixed in {fixed}' if fixed else 'no fixed version'}")
    return found


def main() -> int:
    """Prints what was found; words of the command line go on to pip-audit."""
    try:
        found = findings(ask(sys.argv[1:]), accepted(ACCEPTED.read_text(encoding="utf-8")))
    except NoAnswer as error:
        print(f"audit: nothing is known: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(line)
    print(f"{len(found)} findings that {ACCEPTED.relative_to(ROOT)} does not accept")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
