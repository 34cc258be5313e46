"""Damage on the disk: a flipped bit or a lost tail, in every kind of file of a finished lab."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import lab
from benchmarks.faults.attempts import REPORT, Attempt, Ended, faults_of
from stagealign.store.record import RECORD

Row = dict[str, Any]
DOCTOR = ("doctor", "--deep")
KINDS = {"weights": "*.safetensors", "pairs": "pairs.jsonl", "samples": "candidates.jsonl", "record": RECORD}
OTHERS = "whatever else an artifact holds"
Outcome = tuple[list[str], str]
"""(faults, outcome in words)."""


@dataclass(frozen=True)
class Harm:
    """One damage to one file."""

    file: str
    """Relative to the lab's folder."""
    place: float
    """Place of the damage, as a share of the file's length."""
    cut: bool
    """True cuts the file there; False flips one bit."""

    def do(self, folder: Path) -> None:
        path = folder / self.file
        data = bytearray(path.read_bytes())
        place = int(self.place * len(data))
        if self.cut:
            del data[place:]
        else:
            data[place] ^= 4
        path.unlink()  # a new file, so that hard links keep the old content
        path.write_bytes(data)


Attack = Callable[[Path, Path, Harm], Outcome]


def harms(reference: Path, kind: str, count: int, chance: random.Random) -> list[Harm]:
    """`count` random damages to files of a kind, flips and cuts in turn."""
    home = reference / "home"
    files = {path for path in home.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log")}
    known = {key: set(home.rglob(pattern)) for key, pattern in KINDS.items()}
    chosen = known[kind] if kind in known else files.difference(*known.values())
    names = sorted(str(path.relative_to(reference)) for path in chosen)
    return [Harm(chance.choice(names), chance.random(), bool(number % 2)) for number in range(count)]


def rotten(folder: Path, reference: Path, harm: Harm) -> Outcome:
    """Damages a file of an artifact: the doctor and the next use must name it, and their command must repair it."""
    shutil.copytree(reference / "home", folder / "home", symlinks=True)
    artifact = (folder / harm.file).parent
    harm.do(folder)
    if _harmless(folder / harm.file, reference / harm.file):
        return [], "the same JSON"
    wrong = _named(Attempt(folder, DOCTOR).end(), artifact, "doctor")
    _forget_children(folder / "home", artifact)
    used = Attempt(folder).end()
    if used.code == 0:  # no missing artifact reads this file
        own = str((folder / harm.file).relative_to(folder / "home"))
        return wrong + [fault for fault in faults_of(folder, reference) if not fault.startswith(own)], "read by nobody"
    wrong += _named(used, artifact, "run")
    shutil.rmtree(artifact)  # as the message says
    again = Attempt(folder).end()
    wrong += [f"after the command: {again.output[-400:]}"] if again.code else faults_of(folder, reference)
    return wrong, "made again, byte for byte"


def _harmless(file: Path, whole: Path) -> bool:
    """Whether a damaged JSON file has the same values as before, because only white space changed."""
    if file.suffix != ".json":
        return False
    try:
        return bool(json.loads(file.read_bytes()) == json.loads(whole.read_bytes()))
    except ValueError:
        return False


def _named(ended: Ended, artifact: Path, command: str) -> list[str]:
    """Fault if a command did not fail with the message that says how to remove exactly this artifact."""
    text = "".join(ended.output.split())  # a terminal's width breaks lines
    fine = ended.code in (1, 2) and f"`rm-r{artifact}`" in text and ended.clean
    return [] if fine else [f"{command}: exit {ended.code}: {ended.output[-400:]}"]


def _forget_children(home: Path, artifact: Path) -> None:
    """Removes all artifacts built from this one, so that their rebuild has to read it."""
    gone = {str(artifact.relative_to(home))}
    while True:
        more = [path.parent for path in home.rglob(RECORD) if gone & set(_inputs(path))]
        if not more:
            return
        for folder in more:
            gone.add(str(folder.relative_to(home)))
            shutil.rmtree(folder)


def _inputs(record: Path) -> Sequence[str]:
    try:
        return list(json.loads(record.read_text(encoding="utf-8"))["inputs"].values())
    except ValueError:  # the damaged record
        return []


def results(folder: Path, reference: Path, harm: Harm) -> Outcome:
    """Damages a result: the report must name it with a command, and that command must repair it."""
    shutil.copytree(reference / "results", folder / "results")
    shutil.copytree(reference / "home", folder / "home", symlinks=True)
    harm.do(folder)
    if _harmless(folder / harm.file, reference / harm.file):
        return [], "the same JSON"
    cell = Path(harm.file).name.rpartition("-seed")[0]
    reported = Attempt(folder, REPORT).end()
    page = (folder / "reports" / lab.SCALE / "README.md").read_text(encoding="utf-8").replace("\\", "")
    command = f"`stagealign run --scale {lab.SCALE} -k {cell}`"
    wrong = [] if reported.clean and command in page else [f"not in the report: {command}; {reported.output[-300:]}"]
    again = Attempt(folder).end()
    wrong += [again.output[-400:]] if again.code else faults_of(folder, reference)
    return wrong, "made again, byte for byte"


def measure(folder: Path, count: int, seed: int) -> Iterator[Row]:
    """Yields a row for each kind of file, with `count` damages each, in a store that the doctor finds sound."""
    from benchmarks.faults.killing import undisturbed

    reference, chance = folder / "reference", random.Random(seed)
    undisturbed(reference)
    well = Attempt(reference, DOCTOR).end()
    if "rm -r" in well.output:
        raise RuntimeError(f"the doctor finds faults in an undamaged store:\n{well.output}")
    for kind in (*KINDS, OTHERS):
        yield _row(kind, rotten, folder, reference, harms(reference, kind, count, chance))
    names = [str(path.relative_to(reference)) for path in sorted((reference / "results").rglob("*.json"))]
    chosen = [Harm(chance.choice(names), chance.random(), bool(number % 2)) for number in range(count)]
    yield _row("result", results, folder, reference, chosen)


def _row(
    kind: str, attack: Callable[[Path, Path, Harm], Outcome], folder: Path, reference: Path, chosen: Sequence[Harm]
) -> Row:
    wrong, bad, ends = list[str](), 0, Counter[str]()
    for number, harm in enumerate(chosen):
        place = folder / f"{kind.replace(' ', '-')}{number}"
        faults, end = attack(place, reference, harm)
        bad += bool(faults)
        ends["not as it must be" if faults else end] += 1
        wrong += [f"{harm.file} at {harm.place:.3f}, {'cut' if harm.cut else 'flipped'}: {faults[0]}"] if faults else []
        shutil.rmtree(place)
    return {
        "tried": f"{kind}: a byte flipped or the tail cut",
        "times": len(chosen),
        "survived": len(chosen) - bad,
        "wrong": wrong[:3],
        "found": "named, with the command; "
        + ", ".join(f"{times} {end}" for end, times in ends.most_common() if times),
    }
