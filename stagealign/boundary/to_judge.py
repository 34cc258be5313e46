"""The pairs that somebody has to judge, for people and models that fill them in: `recorded:FILE` reads them back."""

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
from stagealign.boundary.sampling import Samples
from stagealign.data.formats import no_formula
from stagealign.store.files import check_target, write_bytes
from stagealign.store.home import default_home
from stagealign.store.kept import Kept

ENDINGS = (".csv", ".jsonl")
COLUMNS = ("prompt", "a", "b", "preference")
OTHERS = ("oracle", "decide", "judge_url", "max_judge_tokens")
"""Options of a measurement that writing pairs has no use for."""


@dataclass(frozen=True)
class WrittenPairs:
    """What was written to be judged."""

    path: Path
    pairs: int
    prompts: int
    """That were sampled, those without a pair to judge included."""
    failed: int
    """Prompts that the policy did not answer: they have no pairs."""
    notes: tuple[str, ...]
    then: str
    """The command that measures once the file is filled in."""
    reasons: Mapping[str, int] = field(default_factory=dict)


def write_pairs(
    request: BoundaryRequest,
    path: Path,
    heard: Heard = lambda done, total, score: None,
    others: Mapping[str, object] | None = None,
) -> WrittenPairs:
    """Samples the policy and writes each pair that a measurement of `request` asks about, `preference` left empty.

    The rows of a prompt stand together, prompts in the order in which they are measured, so that the first of them can
    be judged alone (`--prompts`). Which text is `a`, and the order of a prompt's pairs, are drawn by chance: nothing
    in the file tells on-policy from off-policy texts. Equal texts tie and are left out. In a CSV file a text that a
    spreadsheet would take for a formula has an apostrophe before it, which is taken off when the file is read back.
    `others`: what else was asked for by option, which is an error. Raises StagealignError before anything is sampled.
    """
    _check(request, path, others or {})
    from stagealign.data.preferences import read_preferences

    rows = read_preferences(str(request.data), request.prompts, request.seed, request.split)
    items, policy = MeterPrompts(rows.rows), open_policy(request)
    samples = Samples(policy.sampler, samples_at(default_home(), policy.identity) if request.keep else Kept(None))
    written: list[Mapping[str, str | None]] = []
    reasons: dict[str, int] = {}
    done = 0
    for batch in batches(items, growing=True):
        for item, one in samples.contests(batch):
            if one.failed is None:
                written += _pairs(request.seed, item.key, item.prompt, one.completions, item.off)
            else:
                reasons[one.failed] = reasons.get(one.failed, 0) + 1
        done += len(batch)
        heard(done, len(items), float("nan"))
    if not written:
        why = "; ".join(reasons) or "every candidate equals the others of its prompt"
        raise BadData(f"--pairs {path}: no pair to judge, nothing was written; {why}")
    write_bytes(path, _encoded(written, path.suffix))
    return WrittenPairs(
        path, len(written), len(items), sum(reasons.values()), policy.notes, _then(request, path), reasons=reasons
    )


def _check(request: BoundaryRequest, path: Path, others: Mapping[str, object]) -> None:
    check(request)
    why = "it only writes what is to be judged"
    unused(request, OTHERS, "--pairs", why)
    for option, value in others.items():
        if value is not None:
            raise StagealignError(f"{option} with --pairs: not used, {why}; leave {option} out")
    if path.suffix not in ENDINGS:
        raise StagealignError(f"--pairs {path}: unknown ending; one of {', '.join(ENDINGS)}")
    if path.exists():
        raise StagealignError(f"--pairs {path}: is there already, maybe with judgments in it; name another file")
    check_target("--pairs", path)
    needs_policy_and_data(request)


def _pairs(
    seed: int, key: str, prompt: str, on: Sequence[str], off: Sequence[str]
) -> Iterator[Mapping[str, str | None]]:
    """The prompt's pairs across the two sources, each once, in an order and on sides drawn by chance."""
    chance = random.Random(stream(seed, "pairs to judge", key))
    pairs = list(dict.fromkeys((a, b) for a in on for b in off if a.strip() != b.strip()))
    chance.shuffle(pairs)
    for pair in pairs:
        a, b = pair if chance.random() < 0.5 else pair[::-1]
        yield {"prompt": prompt, "a": a, "b": b, "preference": None}


def _encoded(rows: Sequence[Mapping[str, str | None]], ending: str) -> bytes:
    """The file's bytes; a CSV file starts with a byte order mark, without which Excel misreads UTF-8."""
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writeheader()
    table.writerows({name: no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8-sig")


def _then(request: BoundaryRequest, path: Path) -> str:
    """The command that measures with the judgments."""
    words = ["stagealign", "boundary"]
    given = {**asdict(request), **asdict(request.decoding)}
    defaults = {**DEFAULTS, **asdict(DEFAULTS["decoding"])}
    for name, value in given.items():
        if name not in ("decoding", "keep", *OTHERS) and value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--oracle", f"recorded:{path}"])
