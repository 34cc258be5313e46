"""The boundary meter: a policy and preference data in, the stage and what to collect next out.

Stands alone: no cell, no training. Measures in batches, keeps every candidate and verdict, and stops as soon as the
decision that was asked for is made.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stagealign.atomic import append
from stagealign.boundary import Decision, Stage, boundary_score, cross_votes, top_vote
from stagealign.errors import BadData
from stagealign.judged import Contest, Judged, Oracle
from stagealign.records import read_dicts
from stagealign.spec import fingerprint

FIRST_BATCH, LARGEST_BATCH = 16, 256
FAILURES_ALLOWED = 0.01
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
    """Why there is nothing of this prompt: it is then never kept, counts as a failure, and the next call asks again."""


@dataclass(frozen=True)
class Item:
    """One prompt of the data: what is sampled for, and its static candidates."""

    key: str
    """Prompt hash."""
    prompt: str
    off: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] | None = None


Sampler = Callable[[Sequence[Item]], Iterable[Sampled]]
"""What a policy wrote, one a prompt and in their order; what was given before an error is kept."""


@dataclass
class Phases:
    """Seconds and tokens of each phase, of this call only."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0


@dataclass(frozen=True)
class Measurement:
    """The meter's answer; `boundary_score` is the share of votes that the policy's own candidates won."""

    boundary_score: float
    interval: tuple[float, float]
    stage: Stage
    collect: str
    prompts_used: int
    votes: Mapping[str, float]
    top_candidate: Mapping[str, Any]
    """The other reading: one vote a prompt, to the source of its best candidate."""
    decision: Mapping[str, Any] | None
    """Level, whether a stage was named, and prompts needed if not; None where no decision was asked for."""
    failures: int
    reliable: bool
    caveats: Mapping[str, float]
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    running: tuple[tuple[int, float, float, float], ...]
    """(prompts, score, low, high) after each batch."""
    sample: tuple[Mapping[str, Any], ...]
    """Some prompts with their candidates and votes."""

    @property
    def sentence(self) -> str:
        """The answer in one plain sentence."""
        low, high = self.interval
        score = f"boundary score {self.boundary_score:.2f} [{low:.2f}, {high:.2f}] from {self.prompts_used} prompts"
        if self.stage == "undecided":
            needed = (self.decision or {}).get("prompts_needed")
            more = f"; about {needed} prompts would decide it at this gap" if needed else ""
            return f"Undecided: {ADVICE[self.stage]} ({score}{more})."
        return f"Preference {self.stage} stage: {ADVICE[self.stage]} ({score})."

    def plain(self) -> dict[str, Any]:
        """The measurement as JSON-ready values."""
        return asdict(self) | {"sentence": self.sentence}


class Kept:
    """Rows that were measured before, by prompt hash, in a JSON-lines file that only grows."""

    def __init__(self, path: Path | None):
        self.path = path
        self.places: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._mend(path)
            for row in read_dicts(path):
                self.places[row["key"]] = row

    @staticmethod
    def _mend(path: Path) -> None:
        """Cuts off a last line that an interrupt left half written."""
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])

    def get(self, key: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.places.get(key)
        return found

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps rows, on disk before anything is made of them."""
        if self.path is not None:
            append(self.path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
        self.places.update((row["key"], dict(row)) for row in rows)


class Meter:
    """Measures prompt by prompt; what was kept of earlier calls is not measured again."""

    def __init__(self, sampler: Sampler, oracle: Oracle, sampled: Kept, verdicts: Kept):
        self.sampler, self.oracle = sampler, oracle
        self.sampled, self.verdicts = sampled, verdicts
        self.phases = Phases()

    def contests(self, items: Sequence[Item]) -> list[tuple[Item, Sampled]]:
        """Each prompt with the policy's completions, sampling those that are not kept."""
        missing = [item for item in items if self.sampled.get(item.key) is None]
        failed: dict[str, Sampled] = {}
        if missing:
            started, rows = time.monotonic(), []
            try:
                for item, one in zip(missing, self.sampler(missing), strict=True):
                    self.phases.tokens += one.tokens
                    if one.failed is None:
                        rows.append({"key": item.key, **asdict(one)})
                    else:
                        failed[item.key] = one
            finally:
                self.sampled.add(rows)
            self.phases.seconds["sampling"] += time.monotonic() - started
        return [(item, failed.get(item.key) or self._sampled(item.key)) for item in items]

    def _sampled(self, key: str) -> Sampled:
        row = self.sampled.get(key)
        assert row is not None, key
        return Sampled(tuple(row["completions"]), row["tokens"], row["truncated"])

    def judge(self, batch: Sequence[tuple[Item, Sampled]]) -> list[Judged]:
        """The oracle's verdicts, asking for those that are not kept; a failed one is asked again on the next call."""
        failed = {item.key: Judged((), (), failed=one.failed) for item, one in batch if one.failed is not None}
        missing = [(item, one) for item, one in batch if item.key not in failed and self.verdicts.get(item.key) is None]
        if missing:
            started = time.monotonic()
            contests = [Contest(item.prompt, one.completions, item.off) for item, one in missing]
            for (item, _), verdict in zip(missing, self.oracle.judge(contests), strict=True):
                if verdict.failed is None:
                    self.verdicts.add([{"key": item.key, **asdict(verdict)}])
                else:
                    failed[item.key] = verdict
            self.phases.seconds["oracle"] += time.monotonic() - started
        return [failed.get(item.key) or self._verdict(item.key) for item, _ in batch]

    def _verdict(self, key: str) -> Judged:
        row = dict(self.verdicts.get(key) or {})
        row.pop("key")
        return Judged(**row | {"on": tuple(row["on"]), "off": tuple(row["off"])})


def batches(items: Sequence[Item], growing: bool) -> Iterator[Sequence[Item]]:
    """The prompts in order: small batches that grow where a decision may come early, else large ones."""
    size, start = (FIRST_BATCH if growing else LARGEST_BATCH), 0
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(size + FIRST_BATCH, LARGEST_BATCH)


@dataclass
class Tally:
    """Votes and warnings over the prompts so far."""

    votes: list[tuple[float, float]] = field(default_factory=list)
    tops: list[tuple[float, float]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    sample: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, item: Item, sampled: Sampled, verdict: Judged) -> tuple[float, float] | None:
        """(votes on, votes off) of one prompt; None where the oracle failed."""
        if sampled.failed is not None:
            self.counts["failures"] += 1
            return None
        texts = (*sampled.completions, *item.off)
        self.counts["candidates"] += len(texts)
        self.counts["sampled"] += len(sampled.completions)
        self.counts["truncated by the policy"] += sampled.truncated
        self.counts["empty completions"] += sum(not text.strip() for text in sampled.completions)
        self.counts["repeated candidates"] += len(texts) - len(set(texts))
        if verdict.failed is not None:
            self.counts["failures"] += 1
            return None
        on, off, ties = cross_votes(verdict.on, verdict.off)
        self.counts["ties"] += ties
        self.counts["comparisons"] += len(verdict.on) * len(verdict.off)
        self.counts["cut for the oracle"] += verdict.truncated
        self.counts["asked in both orders"] += verdict.compared
        self.counts["changed with the order"] += verdict.changed
        self._length(sampled.completions, item.off, verdict)
        self.votes.append((on, off))
        self.tops.append(top_vote(verdict.on, verdict.off))
        if len(self.sample) < 20:
            self.sample.append(
                {
                    "prompt": item.prompt,
                    "on": [{"text": t, "score": s} for t, s in zip(sampled.completions, verdict.on, strict=True)],
                    "off": [{"text": t, "score": s} for t, s in zip(item.off, verdict.off, strict=True)],
                    "votes": [on, off],
                }
            )
        return on, off

    def _length(self, ours: Sequence[str], theirs: Sequence[str], verdict: Judged) -> None:
        for text, score in zip(ours, verdict.on, strict=True):
            for other, rival in zip(theirs, verdict.off, strict=True):
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


def measure(
    items: Sequence[Item],
    meter: Meter,
    data: Mapping[str, Any],
    decide: float | None = None,
    heard: Callable[[int, int, float], None] = lambda done, total, score: None,
    epoch_tokens: float | None = None,
) -> Measurement:
    """The measurement over `items`, in their order; with `decide` (0.95, say) it stops when a stage can be named.

    `heard` is told prompts done, prompts in all and the score so far, after each batch. KeyboardInterrupt gives what is
    known so far. `epoch_tokens`: tokens that one DPO epoch on the same data would train on, for the cost share.
    """
    if not items:
        raise BadData("data: no prompt is left to measure")
    most = max(len(item.off) for item in items) * 2
    decision = Decision(float(most), 1 - decide) if decide is not None else None
    tally, running = Tally(), []
    try:
        for batch in batches(items, growing=decide is not None):
            contests = meter.contests(batch)
            for (item, sampled), verdict in zip(contests, meter.judge(contests), strict=True):
                votes = tally.add(item, sampled, verdict)
                if votes is not None and decision is not None:
                    decision.update(*votes)
            if tally.votes:
                now = boundary_score(tally.votes)
                interval = decision.interval if decision else now.interval
                running.append((len(tally.votes), now.score, *interval))
                heard(len(tally.votes), len(items), now.score)
            if decision is not None and decision.stage != "undecided":
                break
    except KeyboardInterrupt:
        if not tally.votes:
            raise
    return conclude(tally, decision, decide, meter, data, running, epoch_tokens)


def conclude(
    tally: Tally,
    decision: Decision | None,
    level: float | None,
    meter: Meter,
    data: Mapping[str, Any],
    running: Sequence[tuple[int, float, float, float]],
    epoch_tokens: float | None,
) -> Measurement:
    """The answer from what was counted."""
    if not tally.votes:
        raise BadData(f"oracle or policy: failed on all {tally.counts['failures']} prompts; nothing was measured")
    cross, top = boundary_score(tally.votes), boundary_score(tally.tops)
    stage: Stage = decision.stage if decision is not None else cross.stage
    failures = tally.counts["failures"]
    asked = len(tally.votes) + failures
    share = meter.phases.tokens / (DPO_TOKEN_COST * epoch_tokens) if epoch_tokens else None
    return Measurement(
        boundary_score=cross.score,
        interval=decision.interval if decision is not None else cross.interval,
        stage=stage,
        collect=ADVICE[stage],
        prompts_used=len(tally.votes),
        votes={"on": cross.votes_on, "off": cross.votes_off, "ties": tally.counts["ties"]},
        top_candidate={"score": top.score, "interval": top.interval},
        decision=None
        if decision is None
        else {"level": level, "decided": stage != "undecided", "prompts_needed": decision.prompts_needed()},
        failures=failures,
        reliable=failures <= FAILURES_ALLOWED * asked,
        caveats=tally.caveats(),
        data=data,
        cost={
            "sampled_tokens": meter.phases.tokens,
            "seconds": {name: round(value, 2) for name, value in meter.phases.seconds.items()},
            "share_of_dpo_epoch": share,
            "paper_share": PAPER_COST_SHARE,
        },
        running=tuple(running),
        sample=tuple(tally.sample),
    )


def kept_at(home: Path, policy: Mapping[str, Any], oracle: Mapping[str, Any]) -> tuple[Kept, Kept]:
    """Candidates of a policy and verdicts of an oracle on them, as earlier calls left them."""
    folder = home / "meter" / fingerprint(policy)
    return Kept(folder / "candidates.jsonl"), Kept(folder / f"verdicts-{fingerprint(oracle)}.jsonl")
