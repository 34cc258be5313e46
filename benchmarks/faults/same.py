"""The same run in other circumstances: what is execution and not identity changes no byte, or rounding alone.

Another number of threads, or another micro-batch, adds the same numbers in another order: results may then differ by
TOLERANCE and no more, and whatever is not a number (the best rung, a state, a reason) must be the same.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.faults import lab
from benchmarks.faults.attempts import RUN, Attempt, Plant, content, faults_of, numbers

Row = dict[str, Any]
TOLERANCE = 1e-4
"""Of a number's size, or of 1 where it is smaller."""
DPO, HINGE = (("run", "-k", f"{method} and {lab.CELLS}", "--scale", lab.SCALE) for method in ("dpo", "slichf"))
THREADS = "threads.txt"
POLICY = "/zephyr/"
"""In the path of what a policy wrote; what humans wrote is the same for all seeds."""
OTHERS = ("run", "-k", "1on or 2on_off", "--scale", lab.SCALE)


def two_threads() -> None:
    """As many threads in every product, where an attempt has one otherwise; each round notes how many it has."""
    import torch

    from stagealign.train import round as rounds

    torch._C.set_num_threads(2)  # the public name is held at one in an attempt
    align, home = rounds.align, Path.cwd()

    def noted(*given: Any) -> Any:
        (home / THREADS).write_text(str(torch.get_num_threads()), encoding="utf-8")
        return align(*given)

    rounds.align = noted


def apart(one: Any, other: Any, place: str = "") -> list[str]:
    """Places where two results differ by more than TOLERANCE, or otherwise than in a number."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        keys = set(one)
        if "accuracy" in one and abs(one["margin"]) < TOLERANCE:  # whose sign is rounding, and accuracy counts signs
            keys -= {"accuracy"}
        return [found for key in sorted(keys) for found in apart(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, (a, b) in pairs for found in apart(a, b, f"{place}.{i}")]
    if isinstance(one, float) and isinstance(other, float | int):
        close = math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return [] if close else [f"{place}: {one} and {other}"]
    return [] if one == other else [f"{place}: {one} and {other}"]


def called(folder: Path, *calls: tuple[str, ...], plant: Plant | None = None) -> list[str]:
    """Makes calls one after the other; the complaint where one of them fails."""
    for words in calls:
        ended = Attempt(folder, words, plant).end()
        if ended.code:
            return [f"exit {ended.code}: {ended.output[-400:]}"]
    return []


def bytes_of(folder: Path, reference: Path, *calls: tuple[str, ...]) -> list[str]:
    """Complaints where these calls do not leave what the reference has, and nothing else."""
    return called(folder, *calls) or faults_of(folder, reference)


def kept(folder: Path, reference: Path, *calls: tuple[str, ...]) -> list[str]:
    """Complaints where what the reference has is not among what these calls leave."""
    failed = called(folder, *calls)
    if failed:
        return failed
    pairs = ((content(one / "home"), numbers(one / "results")) for one in (folder, reference))
    ours, theirs = ({**files, **results} for files, results in pairs)
    return [f"{name}: other content" for name, value in theirs.items() if ours.get(name) != value]


def within_rounding(folder: Path, reference: Path, words: tuple[str, ...], plant: Plant | None = None) -> list[str]:
    """Complaints where results differ by more than rounding."""
    failed = called(folder, words, plant=plant)
    return failed or apart(numbers(folder / "results"), numbers(reference / "results"))


def with_two_threads(folder: Path, reference: Path) -> list[str]:
    """The same, once it is known that a round did have two threads."""
    wrong = within_rounding(folder, reference, RUN, two_threads)
    noted = folder / THREADS
    threads = noted.read_text(encoding="utf-8") if noted.exists() else "none"
    return wrong + [f"a round had {threads} threads"] * (threads != "2")


def another_seed(folder: Path, reference: Path) -> list[str]:
    """Two seeds in one call: the first is that of the reference, no sample of the second is."""
    wrong = kept(folder, reference, (*RUN, "--seeds", "2"))
    known = {path.relative_to(reference) for path in reference.rglob("candidates.jsonl")}
    samples = [path for path in folder.rglob("candidates.jsonl") if POLICY in str(path)]
    first = [path.read_bytes() for path in samples if path.relative_to(folder) in known]
    second = [path.read_bytes() for path in samples if path.relative_to(folder) not in known]
    wrong += [] if first and second else ["no sample of another seed"]
    return wrong + ["a sample of one seed is that of another"] * any(value in first for value in second)


def measure(folder: Path) -> Iterator[Row]:
    """A row for each circumstance."""
    from benchmarks.faults.killing import undisturbed

    reference = folder / "reference"
    undisturbed(reference)
    exact = "byte for byte"
    tries: dict[str, tuple[Any, str]] = {
        "again, one artifact at a time": (lambda at: bytes_of(at, reference, (*RUN[:-1], "1")), exact),
        "its cells one by one": (lambda at: bytes_of(at, reference, DPO, HINGE), exact),
        "its cells in the other order": (lambda at: bytes_of(at, reference, HINGE, DPO), exact),
        "other cells in the store before it": (lambda at: kept(at, reference, OTHERS, RUN), exact),
        "with a second seed": (lambda at: another_seed(at, reference), "the first as it was, the second another"),
        "micro-batch 1": (
            lambda at: within_rounding(at, reference, (*RUN, "--micro-batch", "1")), f"numbers within {TOLERANCE:g}"
        ),
        "two threads": (lambda at: with_two_threads(at, reference), f"numbers within {TOLERANCE:g}"),
    }  # fmt: skip
    for number, (tried, (attack, found)) in enumerate(tries.items()):
        place = folder / str(number)
        wrong = attack(place)
        shutil.rmtree(place)
        row = {"tried": f"the same run {tried}", "times": 1, "survived": int(not wrong), "wrong": wrong[:3]}
        yield row | {"found": found if not wrong else "not as it must be"}
