"""The boundary meter: a policy and preference data in, the stage and what to collect next out.

Stands alone: no cell, no training. Measures in batches, keeps every candidate and verdict, and stops as soon as the
decision that was asked for is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from stagealign.base.errors import BadData
from stagealign.base.identity import fingerprint
from stagealign.boundary.measurement import ADVICE, Measurement
from stagealign.boundary.sampling import (
    COMPLETIONS,
    STATIC,
    Measured,
    MeterPrompt,
    Phases,
    PromptSampler,
    SampledPrompt,
    Samples,
)
from stagealign.boundary.tally import Looks, VoteTally
from stagealign.scoring.contest import VERDICT_COLUMNS, BudgetSpent, Contest, Judged, Oracle, judged_of
from stagealign.store.kept import Kept

FIRST_BATCH, LARGEST_BATCH = 16, 256
FAILURES_ALLOWED = 0.01
DPO_TOKEN_COST = 4
"""A token of DPO (policy forward and backward, reference forward) in forwards of a sampled token; arithmetic only."""
PAPER_COST_SHARE = 0.032
"""2,000 of 61,135 prompts, without the cost of generation; arXiv 2508.10530."""


class VerdictSource(Protocol):
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


class Meter:
    """Measures prompt by prompt; what was kept of earlier calls is not measured again."""

    def __init__(
        self,
        sampler: PromptSampler,
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

    def measured(self, items: Sequence[MeterPrompt]) -> Iterator[Measured]:
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

    def _judge(self, batch: Sequence[tuple[MeterPrompt, SampledPrompt]]) -> Iterator[Judged]:
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

    def _verdict(self, item: MeterPrompt, sampled: SampledPrompt) -> Judged | None:
        """The kept verdict, where it is on these very texts: the data or the samples may be others by now."""
        row = self.verdicts.get(item.key)
        if row is None or row.get("texts") != texts_of(item, sampled):
            return None
        return judged_of(row)


def texts_of(item: MeterPrompt, sampled: SampledPrompt) -> str:
    """What a verdict is about."""
    return fingerprint([item.prompt, sampled.completions, item.off])


def batches(items: Sequence[Any], growing: bool) -> Iterator[Sequence[Any]]:
    """The prompts in order: small batches that grow where a decision may come early, else large ones."""
    size, start = (FIRST_BATCH if growing else LARGEST_BATCH), 0
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(size + FIRST_BATCH, LARGEST_BATCH)


FIXED = "95% over prompts, if their number was fixed beforehand"


def measure(
    items: Sequence[Any],
    source: VerdictSource,
    data: Mapping[str, Any],
    decide: float | None = None,
    heard: Callable[[int, int, float], None] = lambda done, total, score: None,
    epoch_tokens: float | None = None,
) -> Measurement:
    """The measurement over `items`, in their order; with `decide`, such as 0.95, it ends when a stage can be named.

    `heard` is called with (prompts done, prompts in all, score so far) after each batch. KeyboardInterrupt and an
    oracle's `BudgetSpent` end the measurement, which then covers the prompts before. `epoch_tokens`: tokens that one
    DPO epoch on the same data would train on, for the cost share. Memory grows by a few numbers a prompt.
    """
    if not items:
        raise BadData("data: no prompt is left to measure")
    looks = Looks.at(decide, source.most_votes) if decide is not None else None
    tally, stopped = VoteTally(), None
    try:
        for batch in batches(items, growing=decide is not None):
            for one in source.measured(batch):
                if tally.add(*one) and looks is not None:
                    looks.add(tally)
            if tally.prompts:
                heard(tally.prompts, len(items), tally.cross().score)
            if looks is not None and looks.cross.stage != "undecided":
                break
    except (KeyboardInterrupt, BudgetSpent) as error:
        if not tally.prompts:
            raise
        stopped = str(error) or "interrupted"
    return conclude(tally, looks, source, {"prompts": len(items), **data}, epoch_tokens, stopped)


def conclude(
    tally: VoteTally,
    looks: Looks | None,
    source: VerdictSource,
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


def _cost(tally: VoteTally, source: VerdictSource, epoch_tokens: float | None) -> dict[str, Any]:
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
    columns = [*VERDICT_COLUMNS, "texts"]
    return samples_at(home, policy), Kept(_folder(home, policy) / f"verdicts-{fingerprint(oracle)}.jsonl", columns)


def samples_at(home: Path, policy: Mapping[str, Any]) -> Kept:
    """Candidates of a policy, as earlier calls left them."""
    return Kept(_folder(home, policy) / "candidates.jsonl", list(SampledPrompt.__dataclass_fields__))


def _folder(home: Path, policy: Mapping[str, Any]) -> Path:
    return home / "meter" / fingerprint(policy)
