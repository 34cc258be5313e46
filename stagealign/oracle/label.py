"""Builders of labels with any oracle: candidates to training pairs (`rank`), completions to votes (`votes`).

All training labels come from here; the gold reward is another model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.identity import fingerprint, plain
from stagealign.data.records import Candidate, by_prompt, read_rows, write_rows
from stagealign.oracle.labels import to_pairs, to_votes, unusable
from stagealign.oracle.open import OracleAccess, OracleRow, kind_of, opened, row_of
from stagealign.oracle.ready import said_of
from stagealign.scoring.contest import VERDICT_COLUMNS, Contest, Judged, Oracle, answer, answers, judged_of
from stagealign.store.artifact import Facts, Work
from stagealign.store.folder import SCRATCH
from stagealign.store.kept import Kept


@dataclass(frozen=True)
class Labeller:
    """An open oracle with the sign of a preference."""

    row: OracleRow
    oracle: Oracle
    sign: int
    """+1 or -1: -1 prefers what the oracle scores low."""
    scratch: Path | None = None
    """Folder in which verdicts are kept as they arrive; None for an oracle on this machine."""

    def verdicts(self, contests: Sequence[Contest]) -> list[Judged]:
        """Signed verdicts, one per contest, in order. Raises BadData for a failed one: a label is never invented."""
        judged = self.oracle.judge(contests) if self.scratch is None else self._kept(self.scratch, contests)
        return [self._signed(contest, verdict) for contest, verdict in zip(contests, judged, strict=True)]

    def _signed(self, contest: Contest, verdict: Judged) -> Judged:
        if verdict.failed:
            raise BadData(f"prompt {contest.prompt[-60:]!r}: {verdict.failed}; look at its candidates")
        if self.sign == 1:
            return verdict
        return replace(
            verdict,
            on=tuple(self.sign * score for score in verdict.on),
            off=tuple(self.sign * score for score in verdict.off),
            won=tuple(1 - share for share in verdict.won),
        )

    def _kept(self, scratch: Path, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields verdicts; reuses those kept by an interrupted build, except failed ones."""
        scratch.mkdir(parents=True, exist_ok=True)
        kept = Kept(scratch / f"verdicts-{fingerprint(self.oracle.identity)}.jsonl", VERDICT_COLUMNS)
        keys = [fingerprint([contest.prompt, contest.on, contest.off]) for contest in contests]
        missing = [place for place, key in enumerate(keys) if key not in kept]
        failed: dict[int, Judged] = {}
        for place, verdict in zip(missing, self.oracle.judge([contests[i] for i in missing]), strict=True):
            if verdict.failed:
                failed[place] = verdict
            else:
                kept.add({"key": keys[place], **asdict(verdict)})
        for place, key in enumerate(keys):
            row = kept.get(key)
            yield failed[place] if row is None else judged_of(row)

    def facts(self, verdicts: Iterable[Judged]) -> Facts:
        """Facts of the verdicts for a record, as selected by the oracle's row."""
        judged = list(verdicts)
        known = {
            "truncated_for_oracle": sum(verdict.truncated for verdict in judged),
            "compared": sum(verdict.compared for verdict in judged),
            "changed_with_order": sum(verdict.changed for verdict in judged),
            "oracle": plain(self.oracle.identity),
        }
        return {name: known[name] for name in self.row.facts}


@contextmanager
def labeller_of(work: Work) -> Iterator[Labeller]:
    """The oracle of the artifact `oracle`, open while the context lasts.

    Raises StagealignError if a served oracle has another identity than when that artifact was built.
    """
    named, folder = str(work.params["oracle"]), work.inputs["oracle"]
    kind, name = kind_of(named)
    row = row_of(kind)
    assert row is not None, named
    with opened(f"{kind}:{name if row.served else folder}", OracleAccess(work.context.judge_url)) as oracle:
        said = said_of(folder)
        if said is not None and said != plain(oracle.identity):
            raise StagealignError(
                f"oracle {named!r}: it is {plain(oracle.identity)} now and was {said} when the run began; labels of "
                "two oracles are never mixed: serve the first one again, or use another STAGEALIGN_HOME"
            )
        yield Labeller(row, oracle, int(work.params["sign"]), work.out / SCRATCH if row.served else None)


def rank(work: Work) -> Facts:
    """Builder of `pairs`: the oracle prefers one of a prompt's two candidates; see `labels.to_pairs`."""
    file = work.inputs["candidates"] / "candidates.jsonl"
    candidates = read_rows(file, Candidate)
    with labeller_of(work) as labeller:
        contest, all_groups = labeller.row.contest, labeller.row.scores_all
        groups = [
            (first, second)
            for first, second in by_prompt(candidates).values()
            if all_groups or not unusable(first, second)
        ]
        verdicts = labeller.verdicts(
            [contest(first.prompt, answer(first).text, answer(second).text) for first, second in groups]
        )
        verdict_facts = labeller.facts(verdicts)
    scores = {}
    for (first, second), verdict in zip(groups, verdicts, strict=True):
        if first.key == second.key:
            raise BadData(f"{file}: {first.key} comes twice; give each candidate of a prompt its own index")
        scores[first.key], scores[second.key] = verdict.on[0], verdict.off[0]
    pairs, facts = to_pairs(candidates, scores, str(file), "part" in work.params)
    write_rows(work.out / "pairs.jsonl", pairs)
    return {**facts, **verdict_facts}


def votes(work: Work) -> Facts:
    """Builder of `votes`: each prompt's on-policy completions against its static candidates."""
    on = by_prompt(read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate))
    off = by_prompt(read_rows(work.inputs["static"] / "candidates.jsonl", Candidate))
    contests = [Contest(prompt, answers(group), answers(off[prompt])) for prompt, group in on.items()]
    with labeller_of(work) as labeller:
        verdicts = labeller.verdicts(contests)
        verdict_facts = labeller.facts(verdicts)
    rows = [to_votes(contest.prompt, verdict) for contest, verdict in zip(contests, verdicts, strict=True)]
    write_rows(work.out / "votes.jsonl", rows)
    return {"prompts": len(rows), **verdict_facts}
