"""Oracle that looks up recorded preferences."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from stagealign.base.errors import BadData
from stagealign.base.words import short
from stagealign.data.formats import EXAMPLES
from stagealign.oracle.recorded_rows import Recorded, RecordedPair, cross_pairs, pair_key, pair_order, text_hash
from stagealign.scoring.contest import Contest, Judged, by_pairs
from stagealign.stats.votes import cross_votes, top_vote
from stagealign.store.artifact import Identity


class PromptVotes(NamedTuple):
    """Votes of one recorded prompt: over all comparisons, and by its top candidate."""

    prompt: str
    votes_on: float
    votes_off: float
    ties: int
    top_on: float
    top_off: float


def votes_by_prompt(recorded: Recorded) -> list[PromptVotes]:
    """Votes of each prompt of a file of scores, in the order of `recorded.prompts`.

    Raises BadData for a file of pairs, which lacks the sources of its texts.
    """
    if recorded.form != "scores":
        raise BadData(
            f"{recorded.path}: pairs found (a, b, preference), without the sources of their texts; "
            "give columns prompt, source, completion, score, or add --policy and --data"
        )
    votes = []
    for item in recorded.prompts:
        on, off = item.judged.on, item.judged.off
        votes.append(PromptVotes(item.prompt, *cross_votes(on, off), *top_vote(on, off)))
    return votes


class RecordedOracle:
    """Oracle that looks up its verdicts in a file of pairs; texts are matched by `text_hash`.

    Each recorded pair is a vote, even if the pairs of a contest form a cycle.
    """

    def __init__(self, recorded: Recorded):
        if recorded.form != "pairs":
            raise BadData(
                f"{recorded.path}: scores found; to look up pairs, columns prompt, a, b and preference are needed"
            )
        self.recorded = recorded

    @property
    def identity(self) -> Identity:
        return {"kind": "recorded", "version": 2, "sha256": self.recorded.digest}

    def check(self, contests: Iterable[Contest]) -> None:
        """Raises BadData, listing the first ones, if pairs of these contests are recorded in neither order."""
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
                f"prompts; the first: {'; '.join(examples)}; record them with the same texts, or choose another oracle"
            )

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict per contest, in order. Raises BadData for a pair that is not recorded."""
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
        """Recorded judgments of a pair, as shares of its first text; None if missing. Equal texts tie."""
        if text_hash(on) == text_hash(off):
            return RecordedPair(0.5, 1)
        return self.recorded.pairs.get(pair_key(prompt, on, off))
