"""The meter's answer."""

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
