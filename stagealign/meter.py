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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from stagealign.boundary import BoundaryScore, Decision, Stage, boundary_score, cross_votes, pair_votes, top_vote
from stagealign.errors import BadData
from stagealign.judged import Contest, Judged, Oracle, Spent
from stagealign.seals import SEAL, sealed, whole
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
    seconds: float | None = None
    """That sampling took; None where nobody took the time."""


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
GivenT = TypeVar("GivenT")
END: Any = object()
POINTS = 200
"""Most points of a running score."""


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

    def laps(self, name: str, give: Callable[[], Iterable[GivenT]], count: int) -> Iterator[tuple[GivenT, float]]:
        """Each of the `count` things that `give` gives, with its seconds; what the call itself took is shared."""
        before = self.seconds[name]
        with self.timed(name):
            found = iter(give())
        shared = (self.seconds[name] - before) / count
        while True:
            before = self.seconds[name]
            with self.timed(name):
                one = next(found, END)
            if one is END:
                return
            yield one, shared + self.seconds[name] - before


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
    """Level, whether a stage was named, and prompts needed where none was; None where no decision was asked for."""
    failures: int
    """Prompts without a verdict: they have no vote."""
    failure: str | None
    """Why the first of them has none."""
    reliable: bool
    caveats: Mapping[str, float | None]
    """None where nobody can know, such as whether a candidate that was scored beforehand had been cut."""
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    """Of the prompts measured, what earlier calls spent on them included; and of this call alone."""
    running: tuple[tuple[int, float, float, float], ...]
    """(prompts, score, low, high) over the prompts in their order, `interval_kind` of each; at most `POINTS`."""
    sample: tuple[Mapping[str, Any], ...]
    """Some prompts with their candidates and votes."""
    stopped: str | None = None
    """Why the measurement ended before its prompts did, where nothing was decided; None where it did not."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: policy, data, oracle, decoding, seed, version; without secrets."""
    notes: tuple[str, ...] = ()
    """What to know before the answer is acted on, a sentence each."""

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
    row = whole(line)
    if row is None or not isinstance(row.get("key"), str):
        return None
    row.pop(SEAL, None)
    known = columns is None or (row.keys() - {"key"} <= set(columns))
    return row if known else None


class Samples:
    """What the policy wrote; of earlier calls' prompts what was kept of it."""

    def __init__(self, sampler: Sampler, kept: Kept, phases: Phases | None = None):
        """`phases`: what this call spent before."""
        self.sampler, self.kept = sampler, kept
        self.phases = phases or Phases()

    def contests(self, items: Sequence[Item]) -> list[tuple[Item, Sampled]]:
        """Each prompt with the policy's completions, sampling those that are not kept."""
        missing = [item for item in items if item.key not in self.kept]
        failed: dict[str, Sampled] = {}
        if missing:
            laps = self.phases.laps("sampling", lambda: self.sampler(missing), len(missing))
            for item, (one, seconds) in zip(missing, laps, strict=True):
                self.phases.tokens += one.tokens
                one = replace(one, seconds=seconds)
                if one.failed is None:
                    self.kept.add({"key": item.key, **asdict(one)})
                else:
                    failed[item.key] = one
        return [(item, failed.get(item.key) or self._sampled(item.key)) for item in items]

    def _sampled(self, key: str) -> Sampled:
        row = self.kept.get(key)
        assert row is not None, key
        return Sampled(tuple(row["completions"]), row["tokens"], row["truncated"], seconds=row.get("seconds"))


class Meter:
    """Measures prompt by prompt; what was kept of earlier calls is not measured again."""

    def __init__(
        self,
        sampler: Sampler,
        oracle: Oracle,
        sampled: Kept,
        verdicts: Kept,
        billed: Callable[[], int] = lambda: 0,
        phases: Phases | None = None,
    ):
        """`billed` tells the tokens that a served oracle has billed so far; `phases`, what this call spent before."""
        self.samples, self.oracle = Samples(sampler, sampled, phases), oracle
        self.verdicts = verdicts
        self.oracle_tokens = billed
        self.most_votes = COMPLETIONS * STATIC
        self.phases = self.samples.phases
        self._counted = 0

    def measured(self, items: Sequence[Item]) -> Iterator[Measured]:
        """Samples what is missing of these prompts, then gives their verdicts one by one."""
        contests = self.samples.contests(items)
        for (item, sampled), verdict in zip(contests, self._judge(contests), strict=True):
            yield item, sampled, verdict

    def damage(self) -> dict[str, str]:
        """How many kept lines were damaged, and where; they are measured again."""
        damaged = [kept for kept in (self.samples.kept, self.verdicts) if kept.damaged]
        where = ", ".join(str(kept.path) for kept in damaged)
        lines = f"{sum(kept.damaged for kept in damaged)} in {where}"
        return {"damaged lines, measured again": lines} if damaged else {}

    def _judge(self, batch: Sequence[tuple[Item, Sampled]]) -> Iterator[Judged]:
        """The oracle's verdicts, asking for those that are not kept; a failed one is asked again on the next call."""
        kept = [
            Judged((), (), failed=one.failed, seconds=0.0) if one.failed is not None else self._verdict(item, one)
            for item, one in batch
        ]
        missing = [
            Contest(item.prompt, one.completions, item.off)
            for (item, one), verdict in zip(batch, kept, strict=True)
            if verdict is None
        ]
        found = self.phases.laps("oracle", lambda: self.oracle.judge(missing), len(missing)) if missing else iter(())
        for (item, one), verdict in zip(batch, kept, strict=True):
            if verdict is None:
                judged, seconds = next(found)
                verdict = replace(judged, seconds=seconds, tokens=self._billed())
                if verdict.failed is None:
                    self.verdicts.add({"key": item.key, "texts": texts_of(item, one), **asdict(verdict)})
            yield verdict

    def _billed(self) -> int:
        """Tokens billed since this was asked last: about one verdict's, where several are under way at a time."""
        before, self._counted = self._counted, self.oracle_tokens()
        return self._counted - before

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
    spent: Counter[str] = field(default_factory=Counter)
    """Tokens by who wrote or read them."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

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
        self._spend(sampled, verdict)
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

    def _spend(self, sampled: Sampled, verdict: Judged) -> None:
        self.spent["sampled_tokens"] += sampled.tokens
        self.spent["oracle_tokens"] += verdict.tokens
        for phase, seconds in (("sampling", sampled.seconds), ("oracle", verdict.seconds)):
            self.seconds[phase] += seconds or 0.0
        self.counts["not timed"] += None in (sampled.seconds, verdict.seconds)

    def running(self) -> Iterator[tuple[int, float, float, float]]:
        """(prompts, score, low, high) after some of the prompts, each interval for that number of prompts."""
        votes = np.frombuffer(self.votes).reshape(-1, 2)
        for prompts in thinned(self.prompts):
            now = boundary_score(votes[:prompts])
            yield prompts, now.score, *now.interval

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

    def caveats(self) -> dict[str, float | None]:
        """Shares (0 to 1) of what could mislead, and mean lengths of winners and losers in characters."""

        def share(name: str, whole: str) -> float | None:
            return round(self.counts[name] / self.counts[whole], 4) if self.counts[whole] else None

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
    seen: "array[float]" = field(default_factory=lambda: array("d"))
    """Score, and both ends of its interval, after each prompt."""

    @classmethod
    def at(cls, level: float, most_votes: int) -> "Looks":
        return cls(level, Decision(float(most_votes), 1 - level), Decision(1.0, 1 - level))

    def add(self, tally: Tally) -> None:
        """Takes note of the prompt that was counted last."""
        self.cross.update(*tally.votes[-2:])
        self.top.update(*tally.tops[-2:])
        self.seen.extend((self.cross.score, *self.cross.interval))

    def running(self) -> Iterator[tuple[int, float, float, float]]:
        """(prompts, score, low, high) after some of the prompts."""
        for prompts in thinned(self.cross.prompts):
            score, low, high = self.seen[3 * prompts - 3 : 3 * prompts]
            yield prompts, score, low, high

    def remarks(self, score: float, top: float) -> Iterator[str]:
        """Why score and interval may not fit together, where they do not."""
        if not self.cross.consistent:
            yield (
                "Careful: the looks have ruled out every score, which hardly happens by chance: votes may depend on "
                "the order of the prompts, and then no guarantee holds."
            )
        for one, value, name in ((self.cross, score, "the score"), (self.top, top, "the score by top candidate")):
            low, high = one.interval
            if not low <= value <= high:
                yield (
                    f"Careful: {name}, {value:.3f}, lies outside of its interval, {low:.3f} to {high:.3f}: the score "
                    "counts all votes alike, the interval also leaves out what earlier looks ruled out, and the "
                    "guarantee is the interval's."
                )

    @property
    def kind(self) -> str:
        return (
            f"anytime-valid: each end holds at {self.level:.4g} however often one looks, "
            f"both together at {2 * self.level - 1:.4g}"
        )


def thinned(prompts: int) -> list[int]:
    """1 to `prompts`, or at most `POINTS` of these, the first and the last among them, the small ones denser."""
    if prompts <= POINTS:
        return list(range(1, prompts + 1))
    half = POINTS // 2
    even, fine = np.linspace(1, prompts, half), np.geomspace(1, prompts, half)
    return sorted({int(one) for one in np.rint(np.concatenate([even, fine]))})


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
    tally, stopped = Tally(), None
    try:
        for batch in batches(items, growing=decide is not None):
            for one in source.measured(batch):
                if tally.add(*one) and looks is not None:
                    looks.add(tally)
            if tally.prompts:
                heard(tally.prompts, len(items), tally.cross().score)
            if looks is not None and looks.cross.stage != "undecided":
                break
    except (KeyboardInterrupt, Spent) as error:
        if not tally.prompts:
            raise
        stopped = str(error) or "interrupted"
    return conclude(tally, looks, source, {"prompts": len(items), **data}, epoch_tokens, stopped)


def conclude(
    tally: Tally,
    looks: Looks | None,
    source: Source,
    data: Mapping[str, Any],
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
            "prompts_needed": looks.cross.prompts_needed() if stage == "undecided" else None,
            "consistent": looks.cross.consistent,
        },
        failures=failures,
        failure=tally.failure,
        reliable=failures <= FAILURES_ALLOWED * (tally.prompts + failures),
        caveats=tally.caveats(),
        data={**data, **source.damage()},
        cost=_cost(tally, source, epoch_tokens),
        running=tuple((looks or tally).running()),
        sample=tuple(tally.sample),
        stopped=stopped,
        notes=tuple(looks.remarks(cross.score, top.score)) if looks else (),
    )


def _cost(tally: Tally, source: Source, epoch_tokens: float | None) -> dict[str, Any]:
    """What the prompts measured have cost, in whatever call, and what this call has."""
    tokens = tally.spent["sampled_tokens"]
    return {
        "sampled_tokens": tokens,
        "oracle_tokens": tally.spent["oracle_tokens"],
        "seconds": {name: round(value, 2) for name, value in tally.seconds.items()},
        "prompts_not_timed": tally.counts["not timed"],
        "share_of_dpo_epoch": tokens / (DPO_TOKEN_COST * epoch_tokens) if epoch_tokens else None,
        "paper_share": PAPER_COST_SHARE,
        "this_call": {
            "sampled_tokens": source.phases.tokens,
            "oracle_tokens": source.oracle_tokens(),
            "seconds": {name: round(value, 2) for name, value in source.phases.seconds.items()},
        },
    }


def kept_at(home: Path, policy: Mapping[str, Any], oracle: Mapping[str, Any]) -> tuple[Kept, Kept]:
    """Candidates of a policy and verdicts of an oracle on them, as earlier calls left them."""
    columns = [*Judged.__dataclass_fields__, "texts"]
    return samples_at(home, policy), Kept(_folder(home, policy) / f"verdicts-{fingerprint(oracle)}.jsonl", columns)


def samples_at(home: Path, policy: Mapping[str, Any]) -> Kept:
    """Candidates of a policy, as earlier calls left them."""
    return Kept(_folder(home, policy) / "candidates.jsonl", list(Sampled.__dataclass_fields__))


def _folder(home: Path, policy: Mapping[str, Any]) -> Path:
    return home / "meter" / fingerprint(policy)
