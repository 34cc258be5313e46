"""The boundary meter: a policy and preference data in, the stage and what to collect next out.

Stands alone: no cell, no training. Measures in batches, keeps every candidate and verdict, and stops as soon as the
decision that was asked for is made.
"""

import json
import tempfile
import time
import weakref
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagealign.boundary import BoundaryScore, Decision, Stage, boundary_score, cross_votes, pair_votes, top_vote
from stagealign.errors import BadData
from stagealign.judged import Contest, Judged, Oracle, Spent
from stagealign.seals import SEAL, broken, sealed
from stagealign.spec import fingerprint

FIRST_BATCH, LARGEST_BATCH = 16, 256
FAILURES_ALLOWED = 0.01
COMPLETIONS, STATIC = 2, 2
"""Candidates a prompt: sampled, the paper's number, and static, its chosen and rejected."""
DPO_TOKEN_COST = 4
"""A token of DPO (policy forward and backward, reference forward) in forwards of a sampled token; arithmetic only."""
PAPER_COST_SHARE = 0.032
"""2,000 of 61,135 prompts, without the cost of generation; arXiv 2508.10530."""

ADVICE = {
    "injection": "collect off-policy data: the static candidates are nearer to what the oracle wants",
    "fine-tuning": "collect on-policy data: the policy's own samples are nearer to what the oracle wants",
    "undecided": "no advice yet: the votes do not tell the two sources apart",
}


@dataclass(frozen=True)
class Sampled:
    """What the policy wrote for one prompt."""

    completions: tuple[str, ...]
    tokens: int
    truncated: int
    failed: str | None = None
    """Why there are no completions; the prompt then counts as a failure and is asked again on the next call."""


@dataclass(frozen=True)
class Item:
    """One prompt of the data: what is sampled for, and its static candidates."""

    key: str
    """Prompt hash."""
    prompt: str
    off: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] | None = None


Sampler = Callable[[Sequence[Item]], Iterable[Sampled]]
"""What the policy wrote, one an item and in order; one that gives them one by one loses less when it is interrupted."""

Measured = tuple[Item, Sampled, Judged]


@dataclass
class Phases:
    """Seconds and tokens of each phase, of this call only."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0
    """Sampled by the policy."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started


@dataclass(frozen=True)
class Measurement:
    """The meter's answer; `boundary_score` is the share of votes that the policy's own candidates won."""

    boundary_score: float
    interval: tuple[float, float]
    interval_kind: str
    """How `interval` is to be read: it differs with and without a decision."""
    stage: Stage
    collect: str
    prompts_used: int
    votes: Mapping[str, float]
    top_candidate: Mapping[str, Any]
    """The other reading: one vote a prompt, to the source of its best candidate."""
    decision: Mapping[str, Any] | None
    """Level, whether a stage was named, and prompts needed if not; None where no decision was asked for."""
    failures: int
    """Prompts without a verdict: they have no vote."""
    failure: str | None
    """Why the first of them has none."""
    reliable: bool
    caveats: Mapping[str, float]
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    running: tuple[tuple[int, float, float, float], ...]
    """(prompts, score, low, high) after each batch, `interval_kind` of each."""
    sample: tuple[Mapping[str, Any], ...]
    """Some prompts with their candidates and votes."""
    stopped: str | None = None
    """Why the measurement ended before its prompts did, where nothing was decided; None where it did not."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: policy, data, oracle, decoding, seed, version; without secrets."""

    @property
    def sentence(self) -> str:
        """The answer in one plain sentence."""
        low, high = self.interval
        score = f"boundary score {self.boundary_score:.2f} from {self.prompts_used} prompts"
        if self.decision is None:
            score += f", 95% interval {low:.2f} to {high:.2f}"
        else:
            score += f", between {low:.2f} and {high:.2f}, each at {self.decision['level']:.4g} however often one looks"
        if self.stage == "undecided":
            needed = (self.decision or {}).get("prompts_needed")
            more = f"; about {needed} prompts would decide it at this gap" if needed else ""
            return f"Undecided: {ADVICE[self.stage]} ({score}{more})."
        return f"Preference {self.stage} stage: {ADVICE[self.stage]} ({score})."

    def plain(self) -> dict[str, Any]:
        """The measurement as JSON-ready values."""
        return asdict(self) | {"sentence": self.sentence}


class Kept:
    """Rows that were measured before, by prompt hash, in a JSON-lines file that only grows.

    In memory is only where each row starts. Without a path they lie in a temporary file.

    A line that is not as it was written is counted and measured again, and so is one that an interrupt cut, uncounted.
    """

    def __init__(self, path: Path | None, columns: Collection[str] | None = None):
        """`columns` of a row, beside its key; None takes any."""
        self.path = path
        self.places: dict[str, int] = {}
        self.damaged = 0
        self._columns = columns
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile() if path is None else open(path, "a+b")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._read()

    def _read(self) -> None:
        """Finds the rows that are whole; cuts off a last line that an interrupt left half written."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if line.endswith(b"\n"):
                row = whole_row(line, self._columns)
                if row is None:
                    self.damaged += 1
                else:
                    self.places[row["key"]] = end
                end += len(line)
        self._file.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a prompt; None where it was not measured."""
        if key not in self.places:
            return None
        self._file.seek(self.places[key])
        return whole_row(self._file.readline(), self._columns)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keeps a row, on disk before anything is made of it."""
        line = json.dumps(sealed(row), ensure_ascii=True).encode() + b"\n"
        self._file.seek(0, 2)
        self._file.write(line)
        self._file.flush()
        self.places[row["key"]] = self._file.tell() - len(line)


class Source(Protocol):
    """Where `measure` gets its prompts' verdicts from."""

    most_votes: int
    """Most comparisons across sources that a prompt has."""
    phases: Phases

    def measured(self, items: Sequence[Any]) -> Iterator[Measured]:
        """Each prompt with its candidates and their verdict, in order, as they come."""
        ...

    def oracle_tokens(self) -> int:
        """Tokens that a served oracle has billed in this call."""
        ...

    def damage(self) -> Mapping[str, str]:
        """What of the rows that earlier calls kept is not as it was written, in words; empty where all is."""
        ...


def whole_row(line: bytes, columns: Collection[str] | None = None) -> dict[str, Any] | None:
    """The row of one kept line, without its seal; None where it is not as it was written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or broken(row):
        return None
    row.pop(SEAL, None)
    known = columns is None or (row.keys() - {"key"} <= set(columns))
    return row if known else None


class Meter:
    """Measures prompt by prompt; what was kept of earlier calls is not measured again."""

    def __init__(
        self, sampler: Sampler, oracle: Oracle, sampled: Kept, verdicts: Kept, billed: Callable[[], int] = lambda: 0
    ):
        """`billed` tells the tokens that a served oracle has billed so far."""
        self.sampler, self.oracle = sampler, oracle
        self.sampled, self.verdicts = sampled, verdicts
        self.oracle_tokens = billed
        self.most_votes = COMPLETIONS * STATIC
        self.phases = Phases()

    def measured(self, items: Sequence[Item]) -> Iterator[Measured]:
        """Samples what is missing of these prompts, then gives their verdicts one by one."""
        contests = self.contests(items)
        for (item, sampled), verdict in zip(contests, self._judge(contests), strict=True):
            yield item, sampled, verdict

    def damage(self) -> dict[str, str]:
        """How many kept lines were damaged, and where; they are measured again."""
        damaged = [kept for kept in (self.sampled, self.verdicts) if kept.damaged]
        where = ", ".join(str(kept.path) for kept in damaged)
        lines = f"{sum(kept.damaged for kept in damaged)} in {where}"
        return {"damaged lines, measured again": lines} if damaged else {}

    def contests(self, items: Sequence[Item]) -> list[tuple[Item, Sampled]]:
        """Each prompt with the policy's completions, sampling those that are not kept."""
        missing = [item for item in items if item.key not in self.sampled]
        failed: dict[str, Sampled] = {}
        if missing:
            with self.phases.timed("sampling"):
                for item, one in zip(missing, self.sampler(missing), strict=True):
                    self.phases.tokens += one.tokens
                    if one.failed is None:
                        self.sampled.add({"key": item.key, **asdict(one)})
                    else:
                        failed[item.key] = one
        return [(item, failed.get(item.key) or self._sampled(item.key)) for item in items]

    def _sampled(self, key: str) -> Sampled:
        row = self.sampled.get(key)
        assert row is not None, key
        return Sampled(tuple(row["completions"]), row["tokens"], row["truncated"])

    def _judge(self, batch: Sequence[tuple[Item, Sampled]]) -> Iterator[Judged]:
        """The oracle's verdicts, asking for those that are not kept; a failed one is asked again on the next call."""
        kept = [
            Judged((), (), failed=one.failed) if one.failed is not None else self._verdict(item, one)
            for item, one in batch
        ]
        missing = [
            Contest(item.prompt, one.completions, item.off)
            for (item, one), verdict in zip(batch, kept, strict=True)
            if verdict is None
        ]
        found = iter(self.oracle.judge(missing)) if missing else iter(())
        for (item, one), verdict in zip(batch, kept, strict=True):
            if verdict is None:
                with self.phases.timed("oracle"):
                    verdict = next(found)
                    if verdict.failed is None:
                        self.verdicts.add({"key": item.key, "texts": texts_of(item, one), **asdict(verdict)})
            yield verdict

    def _verdict(self, item: Item, sampled: Sampled) -> Judged | None:
        """The kept verdict, where it is on these very texts: the data or the samples may be others by now."""
        row = self.verdicts.get(item.key)
        if row is None or row.get("texts") != texts_of(item, sampled):
            return None
        del row["key"], row["texts"]
        return Judged(**row | {name: tuple(row.get(name, ())) for name in ("on", "off", "won")})


def texts_of(item: Item, sampled: Sampled) -> str:
    """What a verdict is about."""
    return fingerprint([item.prompt, sampled.completions, item.off])


def batches(items: Sequence[Any], growing: bool) -> Iterator[Sequence[Any]]:
    """The prompts in order: small batches that grow where a decision may come early, else large ones."""
    size, start = (FIRST_BATCH if growing else LARGEST_BATCH), 0
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(size + FIRST_BATCH, LARGEST_BATCH)


@dataclass
class Tally:
    """Votes and warnings over the prompts so far."""

    votes: "array[float]" = field(default_factory=lambda: array("d"))
    """For on and for off, a prompt after the other."""
    tops: "array[float]" = field(default_factory=lambda: array("d"))
    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    sample: list[Mapping[str, Any]] = field(default_factory=list)
    failure: str | None = None
    """Why the first prompt that failed did."""

    @property
    def prompts(self) -> int:
        """Prompts that have voted."""
        return len(self.votes) // 2

    def cross(self) -> BoundaryScore:
        """Score by all comparisons across sources."""
        return boundary_score(np.frombuffer(self.votes).reshape(-1, 2))

    def top(self) -> BoundaryScore:
        """Score by the source of each prompt's best candidate."""
        return boundary_score(np.frombuffer(self.tops).reshape(-1, 2))

    def add(self, item: Item, sampled: Sampled, verdict: Judged) -> bool:
        """Counts one prompt; False where the oracle failed, and there is no vote."""
        texts = (*sampled.completions, *item.off)
        self.counts["candidates"] += len(texts)
        self.counts["sampled"] += len(sampled.completions)
        self.counts["truncated by the policy"] += sampled.truncated
        self.counts["empty completions"] += sum(not text.strip() for text in sampled.completions)
        self.counts["repeated candidates"] += len(texts) - len(set(texts))
        if verdict.failed is not None:
            self.counts["failures"] += 1
            self.failure = self.failure or verdict.failed
            return False
        on, off, ties = pair_votes(verdict.won) if verdict.won else cross_votes(verdict.on, verdict.off)
        self.counts["ties"] += ties
        self.counts["comparisons"] += len(verdict.on) * len(verdict.off)
        self.counts["cut for the oracle"] += verdict.truncated
        self.counts["asked in both orders"] += verdict.compared
        self.counts["changed with the order"] += verdict.changed
        self._length(sampled.completions, item.off, verdict)
        self.votes.extend((on, off))
        self.tops.extend(top_vote(verdict.on, verdict.off))
        if len(self.sample) < 20:
            self.sample.append(
                {
                    "prompt": item.prompt,
                    "on": [{"text": t, "score": s} for t, s in zip(sampled.completions, verdict.on, strict=True)],
                    "off": [{"text": t, "score": s} for t, s in zip(item.off, verdict.off, strict=True)],
                    "votes": [on, off],
                }
            )
        return True

    def _length(self, ours: Sequence[str], theirs: Sequence[str], verdict: Judged) -> None:
        scores = [(a, b) for a in verdict.on for b in verdict.off]
        if verdict.won:
            scores = [(share, 0.5) for share in verdict.won]
        texts = ((text, other) for text in ours for other in theirs)
        for (text, other), (score, rival) in zip(texts, scores, strict=True):
            if score != rival:
                winner, loser = (text, other) if score > rival else (other, text)
                self.lengths["winners"] += len(winner)
                self.lengths["losers"] += len(loser)
                self.lengths["pairs"] += 1

    def caveats(self) -> dict[str, float]:
        """Shares (0 to 1) of what could mislead, and mean lengths of winners and losers in characters."""

        def share(name: str, whole: str) -> float:
            return round(self.counts[name] / self.counts[whole], 4) if self.counts[whole] else 0.0

        pairs = max(1, self.lengths["pairs"])
        return {
            "truncated_by_policy": share("truncated by the policy", "sampled"),
            "cut_for_oracle": share("cut for the oracle", "candidates"),
            "changed_with_order": share("changed with the order", "asked in both orders"),
            "ties": share("ties", "comparisons"),
            "repeated_candidates": share("repeated candidates", "candidates"),
            "empty_completions": share("empty completions", "sampled"),
            "winner_characters": round(self.lengths["winners"] / pairs, 1),
            "loser_characters": round(self.lengths["losers"] / pairs, 1),
        }


@dataclass(frozen=True)
class Looks:
    """The decision that was asked for, by both readings of the votes."""

    level: float
    cross: Decision
    top: Decision

    @classmethod
    def at(cls, level: float, most_votes: int) -> "Looks":
        return cls(level, Decision(float(most_votes), 1 - level), Decision(1.0, 1 - level))

    def add(self, tally: Tally) -> None:
        """Takes note of the prompt that was counted last."""
        self.cross.update(*tally.votes[-2:])
        self.top.update(*tally.tops[-2:])

    @property
    def kind(self) -> str:
        return (
            f"anytime-valid: each end holds at {self.level:.4g} however often one looks, "
            f"both together at {2 * self.level - 1:.4g}"
        )


FIXED = "95% over prompts, if their number was fixed beforehand"


def measure(
    items: Sequence[Any],
    source: Source,
    data: Mapping[str, Any],
    decide: float | None = None,
    heard: Callable[[int, int, float], None] = lambda done, total, score: None,
    epoch_tokens: float | None = None,
) -> Measurement:
    """The measurement over `items`, in their order; with `decide` (0.95, say) it stops when a stage can be named.

    `heard` is told prompts done, prompts in all and the score so far, after each batch. KeyboardInterrupt, and an
    oracle's `Spent`, give what is known so far. `epoch_tokens`: tokens that one DPO epoch on the same data would train
    on, for the cost share. Nothing here grows with the number of prompts but a few numbers for each.
    """
    if not items:
        raise BadData("data: no prompt is left to measure")
    looks = Looks.at(decide, source.most_votes) if decide is not None else None
    tally, running, stopped = Tally(), [], None
    try:
        for batch in batches(items, growing=decide is not None):
            for one in source.measured(batch):
                if tally.add(*one) and looks is not None:
                    looks.add(tally)
            if tally.prompts:
                running.append(_look(tally, looks))
                heard(tally.prompts, len(items), running[-1][1])
            if looks is not None and looks.cross.stage != "undecided":
                break
    except (KeyboardInterrupt, Spent) as error:
        if not tally.prompts:
            raise
        stopped = str(error) or "interrupted"
        if not running or running[-1][0] != tally.prompts:
            running.append(_look(tally, looks))
    return conclude(tally, looks, source, data, running, epoch_tokens, stopped)


def _look(tally: Tally, looks: Looks | None) -> tuple[int, float, float, float]:
    now = tally.cross()
    return tally.prompts, now.score, *(looks.cross.interval if looks else now.interval)


def conclude(
    tally: Tally,
    looks: Looks | None,
    source: Source,
    data: Mapping[str, Any],
    running: Sequence[tuple[int, float, float, float]],
    epoch_tokens: float | None,
    stopped: str | None = None,
) -> Measurement:
    """The answer from what was counted."""
    if not tally.prompts:
        raise BadData(
            f"oracle: it failed on all {tally.counts['failures']} prompts, the first with {tally.failure}; nothing was "
            "measured"
        )
    cross, top = tally.cross(), tally.top()
    stage = looks.cross.stage if looks else cross.stage
    failures = tally.counts["failures"]
    phases = source.phases
    return Measurement(
        boundary_score=cross.score,
        interval=looks.cross.interval if looks else cross.interval,
        interval_kind=looks.kind if looks else FIXED,
        stage=stage,
        collect=ADVICE[stage],
        prompts_used=tally.prompts,
        votes={"on": cross.votes_on, "off": cross.votes_off, "ties": tally.counts["ties"]},
        top_candidate={"score": top.score, "interval": looks.top.interval if looks else top.interval},
        decision=None
        if looks is None
        else {
            "level": looks.level,
            "decided": stage != "undecided",
            "prompts_needed": looks.cross.prompts_needed(),
            "consistent": looks.cross.consistent,
        },
        failures=failures,
        failure=tally.failure,
        reliable=failures <= FAILURES_ALLOWED * (tally.prompts + failures),
        caveats=tally.caveats(),
        data={**data, **source.damage()},
        cost={
            "sampled_tokens": phases.tokens,
            "oracle_tokens": source.oracle_tokens(),
            "seconds": {name: round(value, 2) for name, value in phases.seconds.items()},
            "share_of_dpo_epoch": phases.tokens / (DPO_TOKEN_COST * epoch_tokens) if epoch_tokens else None,
            "paper_share": PAPER_COST_SHARE,
        },
        running=tuple(running),
        sample=tuple(tally.sample),
        stopped=stopped,
    )


def kept_at(home: Path, policy: Mapping[str, Any], oracle: Mapping[str, Any]) -> tuple[Kept, Kept]:
    """Candidates of a policy and verdicts of an oracle on them, as earlier calls left them."""
    folder = home / "meter" / fingerprint(policy)
    columns = [list(kind.__dataclass_fields__) for kind in (Sampled, Judged)]
    return (
        Kept(folder / "candidates.jsonl", columns[0]),
        Kept(folder / f"verdicts-{fingerprint(oracle)}.jsonl", [*columns[1], "texts"]),
    )
