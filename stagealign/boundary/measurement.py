"""A measurement: the meter's answer as a value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stagealign.stats.votes import Stage

ADVICE = {
    "injection": "collect off-policy data: the static candidates are nearer to what the oracle wants",
    "fine-tuning": "collect on-policy data: the policy's own samples are nearer to what the oracle wants",
    "undecided": "no advice yet: the votes do not tell the two sources apart",
}


@dataclass(frozen=True)
class Measurement:
    """The meter's answer; `boundary_score` is the share of votes that on-policy candidates won, in [0, 1]."""

    boundary_score: float
    interval: tuple[float, float]
    interval_kind: str
    """Meaning of `interval` as text; it differs with and without a decision."""
    stage: Stage
    collect: str
    prompts_used: int
    votes: Mapping[str, float]
    top_candidate: Mapping[str, Any]
    """Score and interval by top candidates: one vote per prompt, for the source of its best candidate."""
    decision: Mapping[str, Any] | None
    """Level, whether a stage was named, and prompts needed if none was; None if no decision was asked for."""
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

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
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

    def plain(self) -> dict[str, object]:
        """The measurement as JSON-ready values."""
        return asdict(self) | {"sentence": self.sentence}
