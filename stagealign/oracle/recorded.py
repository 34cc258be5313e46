"""An oracle that looks recorded preferences up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stagealign.base.errors import BadData
from stagealign.base.words import short
from stagealign.data.formats import EXAMPLES
from stagealign.oracle.recorded_rows import Recorded, RecordedPair, cross_pairs, marked, pair_key, pair_order
from stagealign.scoring.contest import Contest, Judged, by_pairs
from stagealign.stats.votes import cross_votes, top_vote


class PromptVotes(NamedTuple):
    """Votes of one recorded prompt, by both readings of the boundary score."""

    prompt: str
    votes_on: float
    votes_off: float
    ties: int
    top_on: float
    top_off: float


def votes_by_prompt(recorded: Recorded) -> list[PromptVotes]:
    """Votes of each prompt of a file of scores, in the order of `recorded.prompts`.

    Raises BadData for a file of pairs, which does not say who wrote its texts.
    """
    if recorded.form != "scores":
        raise BadData(
            f"{recorded.path}: pairs found (a, b, preference), which do not tell on-policy from off-policy texts; "
            "give columns prompt, source, completion, score, or add --policy and --data"
        )
    votes = []
    for item in recorded.prompts:
        on, off = item.judged.on, item.judged.off
        votes.append(PromptVotes(item.prompt, *cross_votes(on, off), *top_vote(on, off)))
    return votes


class RecordedOracle:
    """Oracle that looks its verdicts up in a file of pairs; texts are matched as `marked` tells them.

    Each recorded pair votes for itself, also where the pairs of a contest go in a circle.
    """

    def __init__(self, recorded: Recorded):
        if recorded.form != "pairs":
            raise BadData(
                f"{recorded.path}: scores found; to look up pairs, columns prompt, a, b and preference are needed"
            )
        self.recorded = recorded

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "recorded", "version": 2, "sha256": self.recorded.digest}

    def check(self, contests: Iterable[Contest]) -> None:
        """Raises BadData where a pair of these contests is not recorded in either order."""
        asked = prompts = missing = lacking = 0
        examples: list[str] = []
        for contest in contests:
            prompts, before = prompts + 1, missing
            for on, off in cross_pairs(contest):
                asked += 1
                if self._find(contest.prompt, on, off) is None:
                    missing += 1
                    if len(examples) < EXAMPLES:
                        examples.append(f"prompt {short(contest.prompt)} with {short(on)} and {short(off)}")
            lacking += missing > before
        if missing:
            raise BadData(
                f"{self.recorded.path}: {missing} of {asked} pairs to compare are not in it, of {lacking} of {prompts} "
                f"prompts; the first: {'; '.join(examples)}; record them, with the same texts, or choose another oracle"
            )

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """One verdict a contest, in order. Raises BadData for a pair that `check` would have named."""
        for contest in contests:
            yield self._judge(contest)

    def _judge(self, contest: Contest) -> Judged:
        won, compared, changed = [], 0, 0
        for on, off in cross_pairs(contest):
            verdict = self._find(contest.prompt, on, off)
            if verdict is None:
                self.check([contest])
                raise AssertionError("a pair was missing and check did not name it")
            sign, flip = verdict.sign(), verdict.changed()
            if sign is None:
                return Judged((), (), failed="a recorded judgment of this prompt has failed")
            won.append((1 + (sign if pair_order(on, off) else -sign)) / 2)
            compared += flip is not None
            changed += bool(flip)
        return by_pairs(won, contest, compared, changed)

    def _find(self, prompt: str, on: str, off: str) -> RecordedPair | None:
        """RecordedPair of the pair, from the order that `pair_order` gives its texts."""
        if marked(on) == marked(off):
            return RecordedPair(0.5, 1)
        return self.recorded.pairs.get(pair_key(prompt, on, off))
