"""Votes, counts of possible biases, and decisions over the prompts so far."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.scoring.contest import Judged
from stagealign.stats.decision import Decision
from stagealign.stats.narrow import too_narrow
from stagealign.stats.streams import Ended, unstopped_shares
from stagealign.stats.votes import Array, BoundaryScore, boundary_score, cross_votes, pair_votes, top_vote

POINTS = 200
"""Most points of the running score in a measurement."""
FAILED_SHOWN = 20
"""Most failed prompts that a measurement names."""


@dataclass
class VoteTally:
    """Votes, and counts of possible biases, over the prompts so far."""

    votes: "array[float]" = field(default_factory=lambda: array("d"))
    """Votes for `on` and `off` of each prompt in turn; length 2 x prompts."""
    tops: "array[float]" = field(default_factory=lambda: array("d"))
    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    sample: list[Mapping[str, Any]] = field(default_factory=list)
    failure: str | None = None
    """Reason of the first failed prompt."""
    failed: list[Mapping[str, str]] = field(default_factory=list)
    """Hash, start and reason of the first `FAILED_SHOWN` failed prompts."""
    spent: Counter[str] = field(default_factory=Counter)
    """Tokens: `sampled_tokens` by the policy, `oracle_tokens` billed by the oracle."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def prompts(self) -> int:
        """Number of prompts that have voted."""
        return len(self.votes) // 2

    @property
    def answers(self) -> bool:
        """False if every completion of the policy is empty."""
        return self.counts["empty completions"] < self.counts["sampled"] or not self.counts["sampled"]

    def cross(self) -> BoundaryScore:
        """Score by all comparisons across sources."""
        return boundary_score(np.frombuffer(self.votes).reshape(-1, 2))

    def top(self) -> BoundaryScore:
        """Score by the source of each prompt's best candidate."""
        return boundary_score(np.frombuffer(self.tops).reshape(-1, 2))

    def both(self) -> Array:
        """Votes [prompts, 2, 2]: by all comparisons and by top candidates, each for `on` and `off`."""
        return np.stack([np.frombuffer(votes).reshape(-1, 2) for votes in (self.votes, self.tops)], axis=1)

    def remarks(self) -> Iterator[str]:
        """Yields a warning for each reason why the interval for a fixed number of prompts may be too narrow."""
        return too_narrow(np.frombuffer(self.votes).reshape(-1, 2), self.cross())

    def add(self, item: MeterPrompt, sampled: SampledPrompt, verdict: Judged) -> bool:
        """Counts one prompt. Returns False if it has no vote because the oracle failed."""
        self._spend(sampled, verdict)
        texts = (*sampled.completions, *item.off)
        self.counts["candidates"] += len(texts)
        self.counts["sampled"] += len(sampled.completions)
        self.counts["truncated by the policy"] += sampled.truncated
        self.counts["capped by the context"] += sampled.capped
        self.counts["empty completions"] += sum(not text.strip() for text in sampled.completions) - sampled.unanswered
        self.counts["reasoning removed"] += sampled.reasoned + item.reasoned
        self.counts["reasoning marks left"] += sampled.marked + item.marked
        self.counts["repeated candidates"] += len(texts) - len(set(texts))
        if verdict.failed is not None:
            self.counts["failures"] += 1
            self.failure = self.failure or verdict.failed
            if len(self.failed) < FAILED_SHOWN:
                self.failed.append({"prompt_hash": item.key, "prompt": item.prompt[:80], "reason": verdict.failed})
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

    def _spend(self, sampled: SampledPrompt, verdict: Judged) -> None:
        self.spent["sampled_tokens"] += sampled.tokens
        self.spent["oracle_tokens"] += verdict.tokens
        for phase, seconds in (("sampling", sampled.seconds), ("oracle", verdict.seconds)):
            self.seconds[phase] += seconds or 0.0
        self.counts["not timed"] += None in (sampled.seconds, verdict.seconds)

    def running(self) -> Iterator[tuple[int, float, float, float]]:
        """Yields (prompts, score, low, high) after some of the prompts; intervals are for a fixed number of prompts."""
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
        """Shares in [0, 1] of possible biases, and mean lengths of winners and losers in characters."""

        def share(name: str, whole: str) -> float | None:
            return round(self.counts[name] / self.counts[whole], 4) if self.counts[whole] else None

        pairs = max(1, self.lengths["pairs"])
        return {
            "truncated_by_policy": share("truncated by the policy", "sampled"),
            "capped_by_context": share("capped by the context", "sampled"),
            "cut_for_oracle": share("cut for the oracle", "candidates"),
            "changed_with_order": share("changed with the order", "asked in both orders"),
            "ties": share("ties", "comparisons"),
            "repeated_candidates": share("repeated candidates", "candidates"),
            "empty_completions": share("empty completions", "sampled"),
            "reasoning_removed": share("reasoning removed", "candidates"),
            "reasoning_marks_left": share("reasoning marks left", "candidates"),
            "winner_characters": round(self.lengths["winners"] / pairs, 1),
            "loser_characters": round(self.lengths["losers"] / pairs, 1),
        }


LEVEL = 0.95
"""Level of a decision that is asked for by its indifference zone alone."""


@dataclass(frozen=True)
class Until:
    """When a measurement ends before its last prompt."""

    level: float
    """Ends once a stage can be named at this level, such as 0.95."""
    indifference: float | None = None
    """Ends also once the interval lies within this distance of 0.5; None for no such zone."""

    @classmethod
    def asked(cls, level: float | None, indifference: float | None) -> "Until | None":
        """The end that a request asks for, None for none; a zone without a level is decided at 0.95."""
        if level is None and indifference is None:
            return None
        return cls(LEVEL if level is None else level, indifference)


UNSTOPPED = "share of votes won: no vote could end the measurement before the last of these prompts"
CORRECTED = "unbiased under the stopping rule: the first batch's share, over all orders of the prompts that end alike"
INFLATED = "not known: an early stop inflates the share of votes won, and too few orders of the prompts correct it"
"""Meanings of an estimate, as text."""


@dataclass(frozen=True)
class Looks:
    """The requested decision, updated after every prompt, by all comparisons and by top candidates."""

    level: float
    cross: Decision
    top: Decision
    seen: "array[float]" = field(default_factory=lambda: array("d"))
    """Score, low and high after each prompt in turn; length 3 x prompts."""
    batches: list[int] = field(default_factory=list)
    """Number of prompts after each batch, as far as it grew; only there a measurement ends."""

    @classmethod
    def at(cls, asked: Until | float, most_votes: int) -> "Looks":
        """Decisions at a level, such as 0.95; only the one by all comparisons can end a measurement."""
        until = asked if isinstance(asked, Until) else Until(asked)
        alpha = 1 - until.level
        return cls(until.level, Decision(float(most_votes), alpha, until.indifference), Decision(1.0, alpha))

    def add(self, tally: VoteTally) -> None:
        """Updates both decisions with the prompt that was counted last."""
        self.cross.update(*tally.votes[-2:])
        self.top.update(*tally.tops[-2:])
        self.seen.extend((self.cross.score, *self.cross.interval))

    def ends_batch(self, prompts: int) -> bool:
        """Notes the end of a batch after so many prompts; True if the answer ends the measurement here."""
        if prompts > (self.batches[-1] if self.batches else 0):
            self.batches.append(prompts)
        return self.cross.stage != "undecided"

    def decision(self) -> dict[str, Any]:
        """The decision in a measurement."""
        undecided = self.cross.stage == "undecided"
        return {
            "level": self.level,
            "indifference": self.cross.indifference,
            "decided": not undecided,
            "decided_at": self.cross.decided_at,
            "prompts_needed": self.cross.prompts_needed() if undecided else None,
            "consistent": self.cross.consistent,
        }

    def estimates(self, tally: VoteTally, early: bool) -> tuple[tuple[float, float] | None, str]:
        """Scores by all comparisons and by top candidates without an early stop's bias, and their meaning as text.

        `early`: whether the answer ended the measurement with prompts left.
        """
        both, before = tally.both(), [prompts for prompts in self.batches if prompts < tally.prompts]
        ended = Ended(self.batches[0] if self.batches else tally.prompts, before[-1] if before else 0, early)
        shares = unstopped_shares(both[:, 0], both, ended, self.cross)
        if shares is None:
            return None, INFLATED
        cross, top = shares
        return (float(cross), float(top)), CORRECTED if ended.before else UNSTOPPED

    def running(self) -> Iterator[tuple[int, float, float, float]]:
        """Yields (prompts, score, low, high) after some of the prompts."""
        for prompts in thinned(self.cross.prompts):
            score, low, high = self.seen[3 * prompts - 3 : 3 * prompts]
            yield prompts, score, low, high

    def remarks(self, score: float, top: float) -> Iterator[str]:
        """Yields a warning for each disagreement of score and interval."""
        if not self.cross.consistent:
            yield (
                "Careful: the votes so far exclude every score, which is unlikely by chance. If votes depend on the "
                "order of the prompts, the interval has no guarantee."
            )
        for decision, value, name in ((self.cross, score, "the score"), (self.top, top, "the score by top candidate")):
            low, high = decision.interval
            if not low <= value <= high:
                yield (
                    f"Careful: {name}, {value:.3f}, lies outside its interval, {low:.3f} to {high:.3f}. The interval "
                    "also excludes values that earlier votes ruled out, and only the interval has a guarantee."
                )

    @property
    def kind(self) -> str:
        """Meaning of the interval as text."""
        return (
            f"anytime-valid: both ends together hold at {self.level:.4g} however often one looks, "
            f"each at {(1 + self.level) / 2:.4g}"
        )


def thinned(prompts: int) -> list[int]:
    """Numbers from 1 to `prompts`, at most `POINTS` of them, with both ends; denser at small numbers."""
    if prompts <= POINTS:
        return list(range(1, prompts + 1))
    half = POINTS // 2
    even, fine = np.linspace(1, prompts, half), np.geomspace(1, prompts, half)
    return sorted({int(number) for number in np.rint(np.concatenate([even, fine]))})
