"""Bytes that change on the disk: one flipped, or a tail cut off, in every kind of file that a finished lab holds."""

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import lab
from benchmarks.faults.attempts import REPORT, Attempt, Ended, faults_of
from stagealign.store import RECORD

Row = dict[str, Any]
DOCTOR = ("doctor", "--deep")
KINDS = {"weights": "*.safetensors", "pairs": "pairs.jsonl", "samples": "candidates.jsonl", "record": RECORD}
REMOVE = re.compile(r"`rm -r ([^`]+)`")


@dataclass(frozen=True)
class Harm:
    """One change of one file."""

    file: str
    """Relative to the lab's folder."""
    place: float
    """Where, as a share of the file's length."""
    cut: bool
    """Whether all behind it goes, or one bit there turns."""

    def do(self, folder: Path) -> None:
        path = folder / self.file
        data = bytearray(path.read_bytes())
        place = int(self.place * len(data))
        if self.cut:
            del data[place:]
        else:
            data[place] ^= 4
        path.unlink()  # a file linked from elsewhere stays whole there
        path.write_bytes(data)


def harms(reference: Path, pattern: str, count: int, chance: random.Random) -> list[Harm]:
    """`count` random harms of files of a kind, flips and cuts in turn."""
    files = sorted(str(path.relative_to(reference)) for path in (reference / "home").rglob(pattern))
    return [Harm(chance.choice(files), chance.random(), bool(number % 2)) for number in range(count)]


def rotten(folder: Path, reference: Path, harm: Harm) -> list[str]:
    """What was not noticed, or not as it must be: by the doctor, on use, and once its command was followed."""
    shutil.copytree(reference / "home", folder / "home", symlinks=True)
    artifact = (folder / harm.file).parent
    harm.do(folder)
    if _harmless(folder / harm.file, reference / harm.file):
        return []
    wrong = _named(Attempt(folder, DOCTOR).end(), artifact, "doctor")
    _forget_children(folder / "home", artifact)
    used = Attempt(folder).end()
    if used.code == 0:  # nothing that was to be built reads this file
        own = str((folder / harm.file).relative_to(folder / "home"))
        return wrong + [one for one in faults_of(folder, reference) if not one.startswith(own)]
    wrong += _named(used, artifact, "run")
    for place in REMOVE.findall(_joined(used.output)):
        shutil.rmtree(place, ignore_errors=True)
    again = Attempt(folder).end()
    return wrong + ([f"after the command: {again.output[-400:]}"] if again.code else faults_of(folder, reference))


def _harmless(file: Path, whole: Path) -> bool:
    """Whether a JSON file says the same as before: white space between values may change."""
    if file.suffix != ".json":
        return False
    try:
        return bool(json.loads(file.read_bytes()) == json.loads(whole.read_bytes()))
    except ValueError:
        return False


def _joined(output: str) -> str:
    """Output without the line breaks that a terminal's width puts in."""
    return re.sub(r"\s*\n\s*", " ", output)


def _named(ended: Ended, artifact: Path, command: str) -> list[str]:
    """Complaints where a command did not fail with a message that names the artifact and what to do."""
    said = _joined(ended.output).replace(" ", "")
    known = artifact.name in said and ("rm-r" in said)
    fine = ended.code in (1, 2) and known and ended.clean
    return [] if fine else [f"{command}: exit {ended.code}: {ended.output[-400:]}"]


def _forget_children(home: Path, artifact: Path) -> None:
    """Removes all that was made from an artifact, so that what is built anew has to read it."""
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
    except ValueError:  # the harmed one
        return []


def results(folder: Path, reference: Path, harm: Harm) -> list[str]:
    """The same of a result: the report names it and the command that makes it again, which does."""
    shutil.copytree(reference / "results", folder / "results")
    shutil.copytree(reference / "home", folder / "home", symlinks=True)
    harm.do(folder)
    if _harmless(folder / harm.file, reference / harm.file):
        return []
    cell = Path(harm.file).name.rpartition("-seed")[0]
    told = Attempt(folder, REPORT).end()
    page = (folder / "reports" / lab.SCALE / "README.md").read_text(encoding="utf-8").replace("\\", "")
    command = f"`stagealign run --scale {lab.SCALE} -k {cell}`"
    wrong = [] if told.clean and command in page else [f"not in the report: {command}; {told.output[-300:]}"]
    again = Attempt(folder).end()
    return wrong + ([again.output[-400:]] if again.code else faults_of(folder, reference))


def measure(folder: Path, count: int, seed: int) -> Iterator[Row]:
    """`count` harms of each kind of file."""
    from benchmarks.faults.killing import undisturbed

    reference, chance = folder / "reference", random.Random(seed)
    undisturbed(reference)
    for kind, pattern in KINDS.items():
        yield _row(kind, rotten, folder, reference, harms(reference, pattern, count, chance))
    names = [str(path.relative_to(reference)) for path in sorted((reference / "results").rglob("*.json"))]
    chosen = [Harm(chance.choice(names), chance.random(), bool(number % 2)) for number in range(count)]
    yield _row("result", results, folder, reference, chosen)


def _row(kind: str, attack: Any, folder: Path, reference: Path, chosen: Sequence[Harm]) -> Row:
    wrong, bad = [], 0
    for number, harm in enumerate(chosen):
        place = folder / f"{kind}{number}"
        found = attack(place, reference, harm)
        bad += bool(found)
        wrong += [f"{harm.file} at {harm.place:.3f}, {'cut' if harm.cut else 'flipped'}: {found[0]}"] if found else []
        shutil.rmtree(place)
    return {
        "tried": f"{kind}: a byte flipped or the tail cut",
        "times": len(chosen),
        "survived": len(chosen) - bad,
        "wrong": wrong[:3],
        "found": "named, with the command; made again, byte for byte",
    }
