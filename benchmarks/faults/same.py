"""The same run under other conditions of execution, which must not change its results.

Most conditions must not change a byte. Another number of threads, or another micro-batch, adds the same numbers in
another order: numbers may then differ by TOLERANCE; all else (the best rung, a state, a reason) must be equal.
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
"""Largest difference, relative to the number or absolute, whichever is larger."""
DPO, HINGE = (("run", "-k", f"{method} and {lab.CELLS}", "--scale", lab.SCALE) for method in ("dpo", "slichf"))
THREADS = "threads.txt"
POLICY = "/zephyr/"
"""Part of the path of a policy's samples; human texts are the same for all seeds."""
OTHERS = ("run", "-k", "1on or 2on_off", "--scale", lab.SCALE)


def two_threads() -> None:
    """Gives an attempt two threads instead of one; each round records how many it has."""
    import torch

    from stagealign.train import round as rounds

    torch._C.set_num_threads(2)  # an attempt replaces the public function by a no-op
    align, home = rounds.align, Path.cwd()

    def noted(*given: Any) -> Any:
        (home / THREADS).write_text(str(torch.get_num_threads()), encoding="utf-8")
        return align(*given)

    rounds.align = noted


def apart(first: Any, second: Any, place: str = "") -> list[str]:
    """Places where two results differ: in a number by more than TOLERANCE, or in anything else."""
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        keys = set(first)
        if (
            "accuracy" in first and abs(first["margin"]) < TOLERANCE
        ):  # rounding decides its sign, and accuracy counts signs
            keys -= {"accuracy"}
        return [fault for key in sorted(keys) for fault in apart(first[key], second[key], f"{place}.{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [fault for i, (a, b) in pairs for fault in apart(a, b, f"{place}.{i}")]
    if isinstance(first, float) and isinstance(second, float | int):
        close = math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return [] if close else [f"{place}: {first} and {second}"]
    return [] if first == second else [f"{place}: {first} and {second}"]


def called(folder: Path, *calls: tuple[str, ...], plant: Plant | None = None) -> list[str]:
    """Makes the calls one after the other; returns the fault of the first that fails."""
    for words in calls:
        ended = Attempt(folder, words, plant).end()
        if ended.code:
            return [f"exit {ended.code}: {ended.output[-400:]}"]
    return []


def bytes_of(folder: Path, reference: Path, *calls: tuple[str, ...]) -> list[str]:
    """Faults if these calls do not leave exactly the files and results of the reference."""
    return called(folder, *calls) or faults_of(folder, reference)


def kept(folder: Path, reference: Path, *calls: tuple[str, ...]) -> list[str]:
    """Faults if these calls leave less than the files and results of the reference."""
    failed = called(folder, *calls)
    if failed:
        return failed
    pairs = ((content(place / "home"), numbers(place / "results")) for place in (folder, reference))
    ours, theirs = ({**files, **results} for files, results in pairs)
    return [f"{name}: other content" for name, value in theirs.items() if ours.get(name) != value]


def within_rounding(folder: Path, reference: Path, words: tuple[str, ...], plant: Plant | None = None) -> list[str]:
    """Faults if results differ by more than rounding."""
    failed = called(folder, words, plant=plant)
    return failed or apart(numbers(folder / "results"), numbers(reference / "results"))


def with_two_threads(folder: Path, reference: Path) -> list[str]:
    """Faults of a run with two threads, also if a round did not have two."""
    wrong = within_rounding(folder, reference, RUN, two_threads)
    noted = folder / THREADS
    threads = noted.read_text(encoding="utf-8") if noted.exists() else "none"
    return wrong + [f"a round had {threads} threads"] * (threads != "2")


def another_seed(folder: Path, reference: Path) -> list[str]:
    """Faults of a call with two seeds: the first must equal the reference; no sample of the second may."""
    wrong = kept(folder, reference, (*RUN, "--seeds", "2"))
    known = {path.relative_to(reference) for path in reference.rglob("candidates.jsonl")}
    samples = [path for path in folder.rglob("candidates.jsonl") if POLICY in str(path)]
    first = [path.read_bytes() for path in samples if path.relative_to(folder) in known]
    second = [path.read_bytes() for path in samples if path.relative_to(folder) not in known]
    wrong += [] if first and second else ["no sample of another seed"]
    return wrong + ["a sample of one seed is that of another"] * any(value in first for value in second)


def measure(folder: Path) -> Iterator[Row]:
    """Yields one row for each condition."""
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
