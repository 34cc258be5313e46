"""Whether the tests of the numeric rooms bite: `mutmut run`, then this; 90% of the mutants must be killed.

A survivor is no error where it changes nothing that anybody could see (an equivalent mutant) and `docs/mutants.md` says
so by its name; any other is printed with its difference, and counts against the 90% as the explained ones do.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.90
EXPLAINED = ROOT / "docs" / "mutants.md"


def main() -> int:
    """Exit code 0 where enough are killed and every survivor is explained."""
    subprocess.run(["mutmut", "export-cicd-stats"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    counts = json.loads((ROOT / "mutants" / "mutmut-cicd-stats.json").read_text(encoding="utf-8"))
    killed = counts["killed"] + counts["timeout"]
    share = killed / counts["total"]
    listed = subprocess.run(["mutmut", "results"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    survivors = re.findall(r"^\s*(\S+): (?!killed|timeout)", listed, re.MULTILINE)
    known = EXPLAINED.read_text(encoding="utf-8") if EXPLAINED.exists() else ""
    unexplained = [name for name in survivors if f"`{name}`" not in known]
    stale = sorted(set(re.findall(r"`(stagealign\.\S+__mutmut_\d+)`", known)) - set(survivors))
    print(f"{killed} of {counts['total']} mutants killed ({100 * share:.1f}%), {len(survivors)} survived, "
          f"{len(unexplained)} of them not explained in {EXPLAINED.relative_to(ROOT)}")  # fmt: skip
    for name in unexplained:
        print(subprocess.run(["mutmut", "show", name], cwd=ROOT, capture_output=True, text=True).stdout)
    if stale:
        print(f"{EXPLAINED.relative_to(ROOT)} explains what does not survive; take it out: {', '.join(stale)}")
    return int(share < LEAST or bool(unexplained) or bool(stale))


if __name__ == "__main__":
    sys.exit(main())
