"""A measurement: the meter's answer as a value."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stagealign.stats.votes import BOUNDARY, SAME, Stage, stage_of

ADVICE = {
    "injection": "collect off-policy data: the static candidates are nearer to what the oracle wants",
    "fine-tuning": "collect on-policy data: the policy's own samples are nearer to what the oracle wants",
    SAME: "collect either kind of data, whichever is cheaper: the two sources win almost equally often",
    "undecided": "no advice yet: the votes do not tell the two sources apart",
}


@dataclass(frozen=True)
class Measurement:
    """The meter's answer, from the votes of the prompts measured."""

    boundary_score: float
    """Share of votes that on-policy candidates won, in [0, 1]; an early stop inflates it, `estimate` corrects this."""
    interval: tuple[float, float]
    """95% for a fixed number of prompts; with a decision, at the decision's level at every look."""
    interval_kind: str
    """Meaning of `interval` as text; it differs with and without a decision."""
    stage: Stage
    collect: str
    prompts_used: int
    votes: Mapping[str, float]
    top_candidate: Mapping[str, Any]
    """Score, estimate and interval by top candidates: one vote per prompt, for the source of its best candidate."""
    decision: Mapping[str, Any] | None
    """Level, indifference zone, whether and after how many prompts an answer was given, and prompts needed if none
    was; None if no decision was asked for."""
    failures: int
    """Number of prompts without a verdict; they have no vote."""
    failure: str | None
    """Reason of the first failure; None if there are none."""
    reliable: bool
    """True if at most 1% of the prompts failed, and the policy's completions are not all empty."""
    caveats: Mapping[str, float | None]
    """Shares in [0, 1] and mean lengths in characters of what could bias the score; None if unknown."""
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    """Tokens and seconds spent on these prompts in all calls, and under `this_call` in this one."""
    running: tuple[tuple[int, float, float, float], ...]
    """(prompts, score, low, high) after some of the prompts, in order; at most `POINTS` rows."""
    sample: tuple[Mapping[str, Any], ...]
    """Up to 20 prompts with their candidates, scores and votes."""
    stopped: str | None = None
    """Reason why the measurement ended early without a decision; None if it did not."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Request behind the measurement: policy, data, oracle, decoding, seed, version; without secrets."""
    failed_prompts: tuple[Mapping[str, str], ...] = ()
    """Hash, start of the text and reason of the first 20 prompts without a verdict."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, one sentence each."""
    estimate: float | None = None
    """Boundary score without the bias of an early stop, in [0, 1]; None if there was one and it could not be
    corrected."""
    estimate_kind: str = ""
    """Meaning of `estimate` as text."""

    @property
    def sentence(self) -> str:
        """The answer in one sentence, and a second one if answer and numbers seem to disagree."""
        low, high = self.interval
        score = f"boundary score {self._score()}"
        if self.decision is None:
            score += f", 95% interval {low:.2f} to {high:.2f}"
        else:
            score += f", between {low:.2f} and {high:.2f} at {self.decision['level']:.4g} however often one looks"
        if self.stage == "undecided":
            needed = (self.decision or {}).get("prompts_needed")
            more = f"; about {needed} prompts would decide it at this gap" if needed else ""
            return f"Undecided: {ADVICE[self.stage]} ({score}{more})."
        named = f"Preference {self.stage} stage"
        if self.stage == SAME:
            named = f"No practical difference, within {(self.decision or {})['indifference']:.4g} of 0.5"
        return " ".join([f"{named}: {ADVICE[self.stage]} ({score}).", *self._disagreements()])

    def _score(self) -> str:
        """The estimate and the prompts, with the share of votes won where the stopping rule parts the two."""
        share, prompts = f"{self.boundary_score:.2f}", f"from {self.prompts_used} prompts"
        if self.estimate is None:
            return f"{share} {prompts}, which the early stop inflates"
        shown = f"{self.estimate:.2f}"
        corrected = "" if shown == share else f", {share} before correction for when it stopped"
        return f"{shown} {prompts}{corrected}"

    def _disagreements(self) -> Iterator[str]:
        """Sentences that say why answer, interval and score do not agree; none if they do."""
        if self.decision is None:
            return
        low, high = self.interval
        level = self.decision["level"]
        if self.stage == SAME:
            if not low < BOUNDARY < high:
                yield "0.5 itself is ruled out, but only by a difference that does not matter here."
            return
        if low < BOUNDARY < high:
            yield (
                f"0.5 is inside the interval because its two ends hold together at {level:.4g}; the stage needs only "
                f"one end at {level:.4g}."
            )
        score = self.boundary_score if self.estimate is None else self.estimate
        if stage_of(score) != self.stage:
            yield (
                f"The score is on the other side of 0.5: the stage was named after {self.decision['decided_at']} "
                f"prompts, and what followed in the same batch went the other way."
            )

    def plain(self) -> dict[str, object]:
        """The measurement as JSON-ready values."""
        return asdict(self) | {"sentence": self.sentence}
