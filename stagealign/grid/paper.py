"""Published numbers with value, place, source and certainty. An unknown number stays `NOT_FOUND`.

The paper: arXiv 2508.10530, "Is On-Policy Data always the Best Choice for Direct Preference Optimization-based LM
Alignment?" (ICLR 2026). All numbers are of the paper's own models and cannot be compared with those of stand-ins.
"""

from dataclasses import dataclass

EVIDENCE = {
    "A": "abstract, or the authors' README and scripts",
    "N": "a third party's reading note",
    "R": "public reviews",
    "D": "arithmetic on the others",
    "I": "inference",
}
NOT_FOUND = "not published / not found"


@dataclass(frozen=True)
class PublishedNumber:
    """One published number, or its description in words."""

    model: str
    method: str
    policy: str
    """Policy that was measured, or that a round starts from: `start`, `after off`, `after round 1`."""
    quantity: str
    """`lc_win_rate` (percent), `gain_on`, `gain_off` (points), `effectiveness_ratio` (on / off), `boundary_score`."""
    value: float | None
    source: str
    """Letter of `EVIDENCE`."""
    place: str
    sure: str
    words: str = ""
    interval: tuple[float, float] | None = None
    """95%, computed here from the unpaired standard errors of 805 prompts; the paper gives none."""

    @property
    def text(self) -> str:
        """Value or words, and the source letter: `0.44 (D)`."""
        shown = self.words or ("" if self.value is None else f"{self.value:g}")
        return f"{shown} ({self.source})"


_NOTE = "reading note, results of DPO"
_NOTE_BOUNDARY = "reading note, boundary scores"
_ARITHMETIC = "difference of the note's win rates"
KNOWN = (
    PublishedNumber(
        "zephyr", "dpo", "start", "lc_win_rate", 8.12, "D", _ARITHMETIC, "follows from two numbers of the note"
    ),
    PublishedNumber(
        "zephyr", "dpo", "start", "gain_off", 12.65, "N", _NOTE, "one secondary source; 20.77 after the round"
    ),
    PublishedNumber(
        "zephyr", "dpo", "start", "gain_on", 5.58, "D", _ARITHMETIC, "fits the abstract's 0.4x; 13.70 after the round"
    ),
    PublishedNumber(
        "zephyr", "dpo", "start", "effectiveness_ratio", 0.44, "D", "abstract says 0.4x", "solid", interval=(0.25, 0.64)
    ),
    PublishedNumber(
        "zephyr", "dpo", "after off", "gain_on", 12.51, "N", _NOTE, "one secondary source; 33.28 after the round"
    ),
    PublishedNumber("zephyr", "dpo", "after off", "gain_off", 3.00, "D", _ARITHMETIC, "23.77 after the round"),
    PublishedNumber(
        "zephyr",
        "dpo",
        "after off",
        "effectiveness_ratio",
        4.17,
        "D",
        "12.51 / 3.00",
        "no interval; a small denominator",
    ),
    PublishedNumber("zephyr", "dpo", "start", "boundary_score", 0.40, "N", _NOTE_BOUNDARY, "one secondary source"),
    PublishedNumber(
        "zephyr", "dpo", "after round 1", "boundary_score", 0.66, "N", _NOTE_BOUNDARY, "data of round 1 not named"
    ),
    PublishedNumber(
        "zephyr", "dpo", "after round 2", "boundary_score", 0.69, "N", _NOTE_BOUNDARY, "0.66 to 0.69 is borderline"
    ),
    PublishedNumber("llama3", "dpo", "start", "lc_win_rate", 24.59, "N", _NOTE, "one secondary source"),
    PublishedNumber(
        "llama3", "dpo", "start", "effectiveness_ratio", 3.0, "A", "abstract", "direction only", "about 3", (1.8, 8.4)
    ),
    PublishedNumber(
        "llama3", "dpo", "after round 2", "lc_win_rate", 40.57, "N", _NOTE, "unclear whether after on, or off then on"
    ),
    *(
        PublishedNumber("llama3", "dpo", policy, "boundary_score", None, "N", _NOTE_BOUNDARY, "words only", "above 0.5")
        for policy in ("start", "after round 1", "after round 2")
    ),
    PublishedNumber("phi2", "dpo", "start", "lc_win_rate", 5.81, "N", _NOTE, "one secondary source"),
    PublishedNumber(
        "phi2", "dpo", "start", "gain_off", 0.16, "D", _ARITHMETIC, "z = 0.2: nothing; 5.97 after the round"
    ),
    PublishedNumber(
        "phi2", "dpo", "start", "gain_on", -1.60, "N", _NOTE, "unclear whether against the start or against off-policy"
    ),
    *(
        PublishedNumber("phi2", "dpo", policy, "boundary_score", None, "N", _NOTE_BOUNDARY, "words only", "below 0.5")
        for policy in ("start", "after round 1", "after round 2")
    ),
)


def known(model: str, policy: str, quantity: str, method: str = "dpo") -> PublishedNumber | None:
    """The published number for one quantity; None if it is not published or not found."""
    wanted = (model, method, policy, quantity)
    return next((row for row in KNOWN if (row.model, row.method, row.policy, row.quantity) == wanted), None)


def text(model: str, policy: str, quantity: str, method: str = "dpo") -> str:
    """Published value with its source letter, or `NOT_FOUND`."""
    number = known(model, policy, quantity, method)
    return number.text if number else NOT_FOUND
