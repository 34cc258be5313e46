"""Files of pairs for people or models to judge; the oracle `recorded:FILE` reads the result."""

import csv
import io
import json
import random
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.identity import stream
from stagealign.boundary.measure import Heard
from stagealign.boundary.meter import batches, samples_at
from stagealign.boundary.open_policy import open_policy
from stagealign.boundary.prompts import MeterPrompts
from stagealign.boundary.request import DEFAULTS, BoundaryRequest, check, needs_policy_and_data, unused
from stagealign.boundary.sampling import KeptSamples
from stagealign.data.formats import no_formula
from stagealign.store.files import check_target, write_bytes
from stagealign.store.home import default_home
from stagealign.store.kept import Kept

ENDINGS = (".csv", ".jsonl")
COLUMNS = ("prompt", "a", "b", "preference")
OTHERS = ("oracle", "decide", "indifference", "judge_url", "max_judge_tokens")
"""Options of a measurement that do not apply to writing pairs."""


@dataclass(frozen=True)
class WrittenPairs:
    """Summary of a written file of pairs."""

    path: Path
    pairs: int
    prompts: int
    """Number of prompts sampled, including those without a pair to judge."""
    failed: int
    """Number of prompts that the policy did not answer; they have no pairs."""
    notes: tuple[str, ...]
    then: str
    """Command that measures with the file after it is filled in."""
    reasons: Mapping[str, int] = field(default_factory=dict)


def write_pairs(
    request: BoundaryRequest,
    path: Path,
    heard: Heard = lambda done, total, score: None,
    others: Mapping[str, object] | None = None,
) -> WrittenPairs:
    """Samples the policy and writes each pair that a measurement of `request` compares, with `preference` left empty.

    Rows of a prompt are adjacent, and prompts are in the order of the measurement, so a first part can be judged
    (`--prompts`). Sides and the order of a prompt's pairs are random: nothing in the file reveals which texts are
    on-policy. Equal texts tie and are left out. In a CSV file, texts that a spreadsheet would read as a formula get an
    apostrophe, which the reader removes. `others`: options of the command that are errors here. Raises StagealignError
    before anything is sampled.
    """
    _check(request, path, others or {})
    from stagealign.data.preferences import read_preferences

    rows = read_preferences(str(request.data), request.prompts, request.seed, request.split, request.columns)
    items, policy = MeterPrompts(rows.rows), open_policy(request)
    samples = KeptSamples(policy.sampler, samples_at(default_home(), policy.identity) if request.keep else Kept(None))
    written: list[Mapping[str, str | None]] = []
    reasons: dict[str, int] = {}
    done = reasoned = marked = 0
    for batch in batches(items, growing=True):
        for item, sampled in samples.of_prompts(batch):
            reasoned, marked = reasoned + sampled.reasoned + item.reasoned, marked + sampled.marked + item.marked
            if sampled.unusable is None:
                written += _pairs(request.seed, item.key, item.prompt, sampled.completions, item.off)
            else:
                reasons[sampled.unusable] = reasons.get(sampled.unusable, 0) + 1
        done += len(batch)
        heard(done, len(items), float("nan"))
    if not written:
        why = "; ".join(reasons) or "every candidate equals the others of its prompt"
        raise BadData(f"--pairs {path}: no pair to judge, nothing was written; {why}")
    write_bytes(path, _encoded(written, path.suffix))
    notes = (*policy.notes, *_reasoning_notes(reasoned, marked))
    return WrittenPairs(
        path,
        len(written),
        len(items),
        sum(reasons.values()),
        (*notes, *rows.notes()),
        _then(request, path),
        reasons=reasons,
    )


def _reasoning_notes(reasoned: int, marked: int) -> Iterator[str]:
    if reasoned:
        yield f"Reasoning was taken off {reasoned} candidates."
    if marked:
        yield f"Careful: {marked} candidates hold marks of reasoning amid their text and are written with them."


def _check(request: BoundaryRequest, path: Path, others: Mapping[str, object]) -> None:
    check(request)
    why = "it only writes pairs to judge"
    unused(request, OTHERS, "--pairs", why)
    for option, value in others.items():
        if value is not None:
            raise StagealignError(f"{option} with --pairs: not used, {why}; leave {option} out")
    if path.suffix not in ENDINGS:
        raise StagealignError(f"--pairs {path}: unknown ending; one of {', '.join(ENDINGS)}")
    if path.exists():
        raise StagealignError(f"--pairs {path}: the file exists and may hold judgments; name another file")
    check_target("--pairs", path)
    needs_policy_and_data(request)


def _pairs(
    seed: int, key: str, prompt: str, on: Sequence[str], off: Sequence[str]
) -> Iterator[Mapping[str, str | None]]:
    """Yields the prompt's distinct pairs across the two sources, in random order and on random sides."""
    chance = random.Random(stream(seed, "pairs to judge", key))
    pairs = list(dict.fromkeys((a, b) for a in on for b in off if a.strip() != b.strip()))
    chance.shuffle(pairs)
    for pair in pairs:
        a, b = pair if chance.random() < 0.5 else pair[::-1]
        yield {"prompt": prompt, "a": a, "b": b, "preference": None}


def _encoded(rows: Sequence[Mapping[str, str | None]], ending: str) -> bytes:
    """Content of the file. CSV starts with a byte order mark, without which Excel misreads UTF-8."""
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writeheader()
    table.writerows({name: no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8-sig")


def _then(request: BoundaryRequest, path: Path) -> str:
    """Command that measures with the judgments."""
    words = ["stagealign", "boundary"]
    given = {**asdict(request), **asdict(request.decoding)}
    defaults = {**DEFAULTS, **asdict(DEFAULTS["decoding"])}
    for name, value in given.items():
        if name not in ("decoding", "keep", *OTHERS) and value != defaults[name]:
            text = json.dumps(value) if isinstance(value, Mapping) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join([*words, "--oracle", f"recorded:{path}"])
