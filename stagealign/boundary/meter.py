"""The boundary meter: from a policy and preference data to the stage, and what to collect next.

It needs neither a cell nor training. It measures in batches, keeps every candidate and verdict, and stops once the
requested decision is made.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from stagealign.base.errors import BadData
from stagealign.base.identity import fingerprint, plain
from stagealign.boundary.measurement import ADVICE, Measurement
from stagealign.boundary.sampling import (
    COMPLETIONS,
    STATIC,
    KeptSamples,
    Measured,
    MeterPrompt,
    Phases,
    PromptSampler,
    SampledPrompt,
)
from stagealign.boundary.tally import UNSTOPPED, Looks, Until, VoteTally
from stagealign.grid.samplers import OWN_VERSION, RENDERING_VERSION
from stagealign.scoring.contest import VERDICT_COLUMNS, BudgetSpent, Judged, Oracle, judged_of
from stagealign.store.files import write_text
from stagealign.store.kept import Kept

IDENTITY = "identity.json"
"""File beside kept samples: the identity of their policy."""
FIRST_BATCH, LARGEST_BATCH = 16, 256
GROWTH = 4
"""A batch before a decision is a quarter of the prompts before it, so a measurement ends at most so much too late."""
FAILURES_ALLOWED = 0.01
HOPELESS = 256
"""Failures without a single vote after which a measurement ends."""
DPO_TOKEN_COST = 4
"""Compute of one token in DPO (policy forward and backward, reference forward), in forwards of one sampled token."""
PAPER_COST_SHARE = 0.032
"""Share of a DPO epoch: 2,000 of 61,135 prompts, without the cost of generation. Source: arXiv 2508.10530."""


class VerdictSource(Protocol):
    """Source of the verdicts on the prompts of `measure`."""

    most_votes: int
    """Largest number of comparisons across sources of one prompt."""
    phases: Phases

    def measured(self, items: Sequence[Any]) -> Iterator[Measured]:
        """Yields each prompt with its candidates and their verdict, in order."""
        ...

    def oracle_tokens(self) -> int:
        """Tokens that a served oracle billed in this call."""
        ...

    def damage(self) -> Mapping[str, str]:
        """Corrupt rows among those kept by earlier calls, in words; empty if there are none."""
        ...


class Meter:
    """Samples and judges prompt by prompt; reuses samples and verdicts that earlier calls kept."""

    def __init__(
        self,
        sampler: PromptSampler,
        oracle: Oracle,
        sampled: Kept,
        verdicts: Kept,
        billed: Callable[[], int] = lambda: 0,
        phases: Phases | None = None,
    ):
        """`billed` returns the tokens billed by a served oracle so far; `phases`: time this call has already spent."""
        self.samples, self.oracle = KeptSamples(sampler, sampled, phases), oracle
        self.verdicts = verdicts
        self.oracle_tokens = billed
        self.most_votes = COMPLETIONS * STATIC
        self.phases = self.samples.phases
        self._counted = 0

    def measured(self, items: Sequence[MeterPrompt]) -> Iterator[Measured]:
        """Samples the prompts without kept samples, then yields (prompt, candidates, verdict) one by one."""
        sampled_prompts = self.samples.of_prompts(items)
        for (item, sampled), verdict in zip(sampled_prompts, self._judge(sampled_prompts), strict=True):
            yield item, sampled, verdict

    def damage(self) -> dict[str, str]:
        """Number of corrupt kept lines and their files, as text by key; their prompts are measured again."""
        damaged = [kept for kept in (self.samples.kept, self.verdicts) if kept.damaged]
        where = ", ".join(str(kept.path) for kept in damaged)
        lines = f"{sum(kept.damaged for kept in damaged)} in {where}"
        return {"damaged lines, measured again": lines} if damaged else {}

    def _judge(self, batch: Sequence[tuple[MeterPrompt, SampledPrompt]]) -> Iterator[Judged]:
        """Yields one verdict per prompt, kept or by the oracle. New verdicts are kept unless they failed."""
        kept = [
            self._verdict(item, sampled)
            if sampled.unusable is None
            else Judged((), (), failed=sampled.unusable, seconds=0.0)
            for item, sampled in batch
        ]
        missing = [
            item.contest(sampled.completions)
            for (item, sampled), verdict in zip(batch, kept, strict=True)
            if verdict is None
        ]
        laps = self.phases.laps("oracle", lambda: self.oracle.judge(missing), len(missing)) if missing else iter(())
        for (item, sampled), verdict in zip(batch, kept, strict=True):
            if verdict is None:
                judged, seconds = next(laps)
                verdict = replace(judged, seconds=seconds, tokens=self._billed())
                if verdict.failed is None:
                    self.verdicts.add({"key": item.key, "texts": texts_of(item, sampled), **asdict(verdict)})
            yield verdict

    def _billed(self) -> int:
        """Tokens billed since the last call; approximate for a single verdict, as requests run concurrently."""
        before, self._counted = self._counted, self.oracle_tokens()
        return self._counted - before

    def _verdict(self, item: MeterPrompt, sampled: SampledPrompt) -> Judged | None:
        """The kept verdict on exactly these texts; None if there is none, or data or samples have changed since."""
        row = self.verdicts.get(item.key)
        if row is None or row.get("texts") != texts_of(item, sampled):
            return None
        return judged_of(row)


def texts_of(item: MeterPrompt, sampled: SampledPrompt) -> str:
    """Fingerprint of the texts that a verdict is about."""
    return fingerprint([item.prompt, sampled.completions, item.off])


def batches(items: Sequence[Any], growing: bool) -> Iterator[Sequence[Any]]:
    """Yields batches of the prompts in order; `growing` starts with small ones, for a decision that may come early."""
    start = 0
    while start < len(items):
        size = min(max(FIRST_BATCH, start // GROWTH), LARGEST_BATCH) if growing else LARGEST_BATCH
        yield items[start : start + size]
        start += size


FIXED = "95% over prompts, if their number was fixed beforehand"


def measure(
    items: Sequence[Any],
    source: VerdictSource,
    data: Mapping[str, Any],
    decide: Until | float | None = None,
    heard: Callable[[int, int, float], None] = lambda done, total, score: None,
    epoch_tokens: float | None = None,
) -> Measurement:
    """Measures `items` in order; with `decide`, a level such as 0.95 or an `Until`, ends once there is an answer.

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
            for measured in source.measured(batch):
                if tally.add(*measured) and looks is not None:
                    looks.add(tally)
            if tally.prompts:
                heard(tally.prompts, len(items), tally.cross().score)
            if looks is not None and looks.ends_batch(tally.prompts):
                break
            if not tally.prompts and tally.counts["failures"] >= HOPELESS:
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
    """The measurement for these votes. Raises BadData if every prompt failed."""
    if not tally.prompts:
        raise BadData(
            f"the measurement failed on all {tally.counts['failures']} prompts, the first with {tally.failure}; check "
            "data, policy and oracle"
        )
    cross, top = tally.cross(), tally.top()
    stage = looks.cross.stage if looks else cross.stage
    failures = tally.counts["failures"]
    estimates: tuple[float, float] | None = (cross.score, top.score)
    kind = UNSTOPPED
    if looks:
        early = stopped is None and tally.prompts + failures < data["prompts"]
        estimates, kind = looks.estimates(tally, early)
    return Measurement(
        boundary_score=cross.score,
        interval=looks.cross.interval if looks else cross.interval,
        interval_kind=looks.kind if looks else FIXED,
        stage=stage,
        collect=ADVICE[stage],
        prompts_used=tally.prompts,
        votes={"on": cross.votes_on, "off": cross.votes_off, "ties": tally.counts["ties"]},
        top_candidate={
            "score": top.score,
            "interval": looks.top.interval if looks else top.interval,
            "estimate": estimates[1] if estimates else None,
        },
        decision=looks.decision() if looks else None,
        failures=failures,
        failure=tally.failure,
        failed_prompts=tuple(tally.failed),
        reliable=failures <= FAILURES_ALLOWED * (tally.prompts + failures) and tally.answers,
        caveats=tally.caveats(),
        data={**data, **source.damage()},
        cost=_cost(tally, source, epoch_tokens),
        running=tuple((looks or tally).running()),
        sample=tuple(tally.sample),
        stopped=stopped,
        notes=tuple(looks.remarks(cross.score, top.score) if looks else tally.remarks()),
        estimate=estimates[0] if estimates else None,
        estimate_kind=kind,
    )


def _cost(tally: VoteTally, source: VerdictSource, epoch_tokens: float | None) -> dict[str, Any]:
    """Tokens and seconds spent on the measured prompts in all calls, and in this one."""
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
    """Kept candidates of a policy, and kept verdicts of an oracle on them."""
    columns = [*VERDICT_COLUMNS, "texts"]
    return samples_at(home, policy), Kept(_folder(home, policy) / f"verdicts-{fingerprint(oracle)}.jsonl", columns)


def samples_at(home: Path, policy: Mapping[str, Any]) -> Kept:
    """Kept candidates of a policy; its identity is written beside them, for `stagealign doctor`."""
    folder = _folder(home, policy)
    if not (folder / IDENTITY).exists():
        write_text(folder / IDENTITY, json.dumps(plain(policy), sort_keys=True))
    return Kept(folder / "candidates.jsonl", list(SampledPrompt.__dataclass_fields__))


def outdated(folder: Path) -> bool:
    """Whether no measurement of this version would use the samples that are kept in a folder.

    Samples from before identities were written beside them count as outdated.
    """
    try:
        identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        own = identity.get("sampler", [OWN_VERSION])[0]
        return bool(identity.get("rendering") != RENDERING_VERSION or own != OWN_VERSION)
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return True


def _folder(home: Path, policy: Mapping[str, Any]) -> Path:
    return home / "meter" / fingerprint(policy)
