"""The paper's claims as statements that results can confirm or contradict, recorded before the runs that judge them.

Each claim names its metric, its scale, the tolerance within which a number counts as the same, and the smallest effect
that the planned prompts and seeds can show. A result records the fingerprints of the claims that it was made under. A
claim that changed afterwards is not judged by that result; a new claim needs a new key.

Claims at paper scale are the paper's own. Claims at lab scale extend the paper's rule to stand-ins: each predicts a
direction and no number. When they were recorded, two sets of results had been seen: Zephyr's stand-in (DPO, both seeds,
four of six schedules) and the first round of Phi-2's (one seed).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stagealign.base.identity import fingerprint
from stagealign.grid import paper
from stagealign.grid.cell import Cell

CLAIM_KINDS = {
    "better": "which source gains more in the next round, each at its best learning rate (ratio of gains on / off)",
    "score": "boundary score of one policy, against 0.5",
    "rise": "boundary score after the round minus the score before it",
    "rule": "share of cases, among those with a better source, where the boundary score names it, against one half",
}


@dataclass(frozen=True)
class Claim:
    """One statement with its metric and its tolerance."""

    key: str
    words: str
    scale: str
    kind: str
    """Key of `CLAIM_KINDS`."""
    expected: str
    """`on` or `off` for kind `better`; `above` or `below` for the other kinds."""
    model: str = ""
    """Key of the model; empty means all models."""
    method: str = "dpo"
    """Key of the method; empty means all methods."""
    policy: str = "start"
    """Policy that is measured, or that the round starts from: `start`, `after off`, `after off then on`."""
    tolerance: tuple[float, float] | None = None
    """Range in which our value counts as the same number; None if the claim gives only a direction."""
    smallest_effect: float = 0.0
    """Effect, in `unit`, that the planned prompts and seeds detect with 80% power; a smaller one counts as none."""
    unit: str = ""
    planned: str = ""
    """Prompts and seeds from which `smallest_effect` was computed."""
    source: str = ""
    """Place in the paper and certainty."""
    seen: bool = False
    """Whether some of the results that judge the claim had been seen when it was recorded."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of every field that can change a verdict; words and sources are left out."""
        return fingerprint(replace(self, words="", planned="", source="", seen=False))

    def concerns(self, cell: Cell) -> bool:
        """Whether the cell's result helps to judge this claim: any sampler, but the scale's own gold reward."""
        if cell.scale.preference.gold_named:
            return False
        own = (cell.scale.key, cell.model.key, cell.method.key)
        return all(
            ours in ("", theirs) for ours, theirs in zip((self.scale, self.model, self.method), own, strict=True)
        )


def _known(model: str, policy: str, quantity: str) -> str:
    """Letter, place and certainty of a published number."""
    number = paper.known(model, policy, quantity)
    assert number is not None, (model, policy, quantity)
    return f"{number.source}: {number.place}; {number.sure}"


_GAIN = Claim(
    "", "", "paper", "better", "",
    unit="LC win rate points", smallest_effect=2.1, planned="805 prompts, paired; 1 seed",
)  # fmt: skip
_SCORE = Claim(
    "", "", "paper", "score", "",
    unit="share", smallest_effect=0.031, planned="2,000 prompts of 4 votes; 1 seed",
)  # fmt: skip


def _gain(key: str, words: str, expected: str, model: str, policy: str, **more: Any) -> Claim:
    """A published direction of the next round's gains."""
    source = _known(model, policy, "effectiveness_ratio")
    return replace(_GAIN, key=key, words=words, expected=expected, model=model, policy=policy, source=source, **more)


def _score(key: str, words: str, expected: str, about: tuple[str, str], place: str, **more: Any) -> Claim:
    """A published side of the boundary.

    `about`: model and policy; `place`: the paper's name of that policy.
    """
    model, policy = about
    source = _known(model, place, "boundary_score")
    return replace(_SCORE, key=key, words=words, expected=expected, model=model, policy=policy, source=source, **more)


PAPER = (
    _gain(
        "zephyr-start-off", "For Zephyr's start off-policy data is better: the ratio on / off is about 0.4.",
        "off", "zephyr", "start", tolerance=(0.25, 0.64),
    ),
    _gain(
        "zephyr-after-off-on", "For Zephyr after a round of off-policy data on-policy data is better.",
        "on", "zephyr", "after off",
    ),
    _gain(
        "llama3-start-on", "For Llama-3's start on-policy data is better: the ratio on / off is about 3.",
        "on", "llama3", "start", tolerance=(1.8, 8.4),
    ),
    _score(
        "zephyr-start-below", "Zephyr's start is in preference injection: its boundary score is 0.40.",
        "below", ("zephyr", "start"), "start", tolerance=(0.37, 0.43),
    ),
    _score(
        "zephyr-after-off-above",
        "After one round Zephyr is in preference fine-tuning: its boundary score is 0.66 (data of that round assumed "
        "off-policy).",
        "above", ("zephyr", "after off"), "after round 1", tolerance=(0.63, 0.69),
    ),
    _score(
        "llama3-start-above", "Llama-3's start is in preference fine-tuning: its boundary score is above 0.5.",
        "above", ("llama3", "start"), "start",
    ),
    _score(
        "phi2-start-below", "Phi-2's start is in preference injection: its boundary score is below 0.5.",
        "below", ("phi2", "start"), "start",
    ),
    _score(
        "phi2-after-off-below",
        "Phi-2 stays in preference injection after a round (data of that round assumed off-policy).",
        "below", ("phi2", "after off"), "after round 1",
    ),
    Claim(
        "rule", "The stage that the boundary score names is the one whose data is better.",
        "paper", "rule", "above", method="", unit="share", smallest_effect=0.25,
        planned="at most 24 starting policies", source="A: abstract",
    ),
)  # fmt: skip
"""The paper's own claims, judged by results at paper scale only."""
_LAB_EFFECT = {
    "better": (0.6, "rating points", "64 test films, 2 seeds"),
    "score": (0.11, "share", "64 test films of 4 votes, 2 seeds"),
    "rise": (0.14, "share", "64 test films of 4 votes, 2 seeds"),
    "rule": (0.25, "share", "at most 24 starting policies"),
}


def _in_the_lab(claim: Claim) -> Claim:
    """The same claim for the model's stand-in: its direction without a number."""
    effect, unit, planned = _LAB_EFFECT[claim.kind]
    stand_in = replace(claim, scale="lab", tolerance=None, smallest_effect=effect, unit=unit, planned=planned)
    seen = claim.model in ("zephyr", "phi2") or claim.kind == "rule"
    return replace(stand_in, words=_LAB_WORDS.get(claim.key, claim.words), seen=seen)


_LAB_WORDS = {
    "zephyr-start-off": "From the start of Zephyr's stand-in off-policy data is better.",
    "zephyr-after-off-on": "After a round of off-policy data on-policy data is better for Zephyr's stand-in.",
    "llama3-start-on": "From the start of Llama-3's stand-in on-policy data is better.",
    "zephyr-start-below": "The start of Zephyr's stand-in has a boundary score below 0.5.",
    "zephyr-after-off-above": "After a round of off-policy data the score of Zephyr's stand-in is above 0.5.",
    "llama3-start-above": "The start of Llama-3's stand-in has a boundary score above 0.5.",
    "phi2-start-below": "The start of Phi-2's stand-in has a boundary score below 0.5.",
    "phi2-after-off-below": "The score of Phi-2's stand-in stays below 0.5 after a round of off-policy data.",
}
LAB = (
    *map(_in_the_lab, PAPER),
    *(
        _in_the_lab(
            Claim(
                f"{model}-off-rises",
                f"A round of off-policy data raises the boundary score of {name}'s stand-in.",
                "paper",
                "rise",
                "above",
                model,
                policy="after off",
                source="N: reading note, boundary scores (Zephyr 0.40 to 0.66); for other models our extension",
            )
        )
        for model, name in (("pythia", "Pythia"), ("phi2", "Phi-2"), ("zephyr", "Zephyr"), ("qwen", "Qwen"))
    ),
)
CLAIMS = (*PAPER, *LAB)


def of_scale(scale: str) -> tuple[Claim, ...]:
    """Claims that results of one scale judge."""
    return tuple(claim for claim in CLAIMS if claim.scale == scale)


def cited(cell: Cell) -> Mapping[str, str]:
    """Key -> fingerprint of the claims that a cell's result helps to judge."""
    return {claim.key: claim.fingerprint for claim in CLAIMS if claim.concerns(cell)}
