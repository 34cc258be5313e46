"""Reader of recorded judgments: preferences between two texts, or scored candidates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stagealign.base.errors import BadData
from stagealign.base.words import listed, short
from stagealign.data.columns import FIRST, Reading, canonical, fit, layouts_of, renamed
from stagealign.data.formats import DataRow
from stagealign.data.picking import Pick, Shelf, Shelved, empty, positive, some
from stagealign.data.preference_scale import PAIRS, OddPreference, PreferenceScale
from stagealign.data.tables import Tally, digest_of, opened_table, table_at
from stagealign.data.texts import Unusable, given_in, prompt_text, text_in
from stagealign.oracle.recorded_rows import PairKey, Recorded, RecordedPair, RecordedPrompt, pair_key, pair_order

RECORDED = {"pairs": ("prompt", "a", "b", "preference"), "scores": ("prompt", "source", "completion", "score")}
ALPACA_EVAL = {"prompt": "instruction", "a": "output_1", "b": "output_2", "preference": "preference"}
"""Columns of AlpacaEval's annotations by those of form `pairs`. Source: alpaca_eval 0.6 `annotations.json`."""
FORMS = (
    "a recorded file has columns prompt, a, b, preference or prompt, source, completion, score, or AlpacaEval's "
    "instruction, output_1, output_2, preference, or a layout of docs/data.md with a verdict, such as Arena's prompt, "
    "response_a, response_b, winner"
)


def read_recorded(path: str | Path, prompts: int | None = None, seed: int = 0) -> Recorded:
    """Recorded judgments of a file; the columns of its first row decide which of two forms it has.

    Form `pairs` has columns prompt, a, b, preference, or AlpacaEval's instruction, output_1, output_2, preference, or
    those of a layout of `data/layouts.py` (Arena, HelpSteer 3 and others), whose preferred answer counts as 1.
    `preference_scale` has the meaning of a preference: the share by which `a` is preferred, `"a"`, `"b"` or `"tie"`, or
    AlpacaEval's scale from 1 (`a`) to 2 (`b`). Several records of a pair, in either order, are averaged.

    Form `scores` has columns prompt, source (`on` or `off`), completion, score, and one row per candidate. A prompt
    without candidates of one source is dropped. `prompts` of them are chosen as in `read_preferences`; their texts are
    stored on disk. Form `pairs` keeps all rows, in about 400 bytes of memory per pair.

    An empty, null or infinite judgment or score is a failure, not a tie. A pair with only failed judgments and a prompt
    with a failed score have no verdict and count in `failures`. Raises BadData.
    """
    positive(prompts)
    source = str(path)
    local = table_at(source)
    table = opened_table(source, FIRST)
    tally = Tally(table.unit)
    reader, columns = _reader(source, table.first(), tally, prompts, seed)
    given = 0
    for number, row in table.rows(columns):
        given += 1
        try:
            reader.add(number, row)
        except Unusable as error:
            tally.add(str(error), number)
    recorded = reader.result(given, digest_of(local))
    some(source, given - recorded.not_chosen, recorded.used, tally)
    return recorded


class _Pairs:
    """Reader of form `pairs`."""

    def __init__(self, source: str, tally: Tally, named: Mapping[str, str] | None = None):
        self.source, self.tally = source, tally
        self.named = named or {}
        self.used = 0
        self.pairs: dict[PairKey, RecordedPair] = {}
        self.scale = PreferenceScale(source, tally.unit, PAIRS)

    def add(self, number: int, row: DataRow) -> None:
        prompt, a, b, share = self.judged(number, row)
        first = pair_order(a, b)
        verdict = self.pairs.setdefault(pair_key(prompt, a, b), RecordedPair())
        if share is None:
            raise Unusable("failed judgment")
        self.used += 1
        if first:
            verdict.forward, verdict.forwards = verdict.forward + share, verdict.forwards + 1
        else:
            verdict.backward, verdict.backwards = verdict.backward + 1 - share, verdict.backwards + 1

    def judged(self, number: int, row: DataRow) -> tuple[str, str, str, float | None]:
        """Prompt, both texts and the share by which the first is preferred; None for a failed judgment."""
        row = renamed(row, self.named)
        return _prompt(row), _completion(row, "a"), _completion(row, "b"), self._share(number, row)

    def _share(self, number: int, row: DataRow) -> float | None:
        """Share by which `a` is preferred; None for a failed judgment. Raises BadData for an ambiguous scale."""
        if "preference" not in row:
            raise Unusable("no `preference`")
        value = row["preference"]
        try:
            preference = self.scale.add(number, value)
        except OddPreference:
            raise BadData(
                f"{self.source}, {self.tally.unit} {number}, column 'preference': {short(value)} found; "
                f"{self.scale.meaning}"
            ) from None
        return None if preference is None else self.scale.share(preference)

    def result(self, given: int, digest: str) -> Recorded:
        failures = sum(verdict.sign() is None for verdict in self.pairs.values())
        return Recorded(
            self.source, digest, "pairs", given, self.used, 0, failures, self.tally, prompts=[], pairs=self.pairs
        )


class _LaidOut(_Pairs):
    """Reader of pairs in a layout of preference files."""

    def __init__(self, source: str, tally: Tally, reading: Reading):
        super().__init__(source, tally)
        self.reading = reading

    def judged(self, number: int, row: DataRow) -> tuple[str, str, str, float | None]:
        """Prompt, both texts and the share by which the first is preferred."""
        sides = self.reading.sides(row)
        found = self.reading.split(sides, row, [])
        text = prompt_text(found.prompt)
        if not text.strip():
            raise Unusable("empty `prompt`")
        return text, found.chosen, found.rejected, sides.share


class _ScoredRow(NamedTuple):
    """One scored candidate, as stored on the shelf."""

    before: int
    """Place on the shelf of the prompt's previous row; -1 for the first."""
    source: str
    completion: str
    score: float
    prompt: str


@dataclass(slots=True)
class _PromptGroup:
    """Rows of one prompt, as held in memory."""

    number: int
    last: int = -1
    """Place on the shelf of its last row with a score; -1 if there is none."""
    rows: int = 0
    failed: bool = False


class _Scores:
    """Reader of form `scores`."""

    def __init__(self, source: str, tally: Tally, prompts: int | None, seed: int):
        self.source, self.tally = source, tally
        self.pick: Pick[_PromptGroup] = Pick(prompts, seed)
        self.shelf: Shelf[_ScoredRow] = Shelf()

    def add(self, number: int, row: DataRow) -> None:
        prompt, completion = _prompt(row), _completion(row, "completion")
        where = f"{self.source}, {self.tally.unit} {number}, column"
        source = given_in(row, "source")
        if source not in ("on", "off"):
            raise BadData(f"{where} 'source': {short(source)} found; write 'on' (the policy's own) or 'off' (static)")
        if "score" not in row:
            raise Unusable("no `score`")
        score = _number(
            row["score"], f"{where} 'score'", "write a number, higher is better, or leave a failed one empty"
        )
        group = self.pick.group(prompt, lambda: _PromptGroup(number))
        if group is None:
            return
        group.rows += 1
        if score is None:
            group.failed = True
        else:
            group.last = self.shelf.put(_ScoredRow(group.last, source, completion, score, prompt))

    def result(self, given: int, digest: str) -> Recorded:
        """The judgments read. Drops prompts with a failed score, and prompts without candidates of one source."""
        shelf: Shelf[RecordedPrompt] = Shelf()
        places, used, failures, most_votes = [], 0, 0, 0
        for group in self.pick.in_order():
            if group.failed:
                failures += 1
                self._drop("prompt with a failed score", group)
                continue
            prompt = self._prompt(group)
            if not (prompt.on and prompt.off):
                self._drop(f"prompt without candidates of source '{'off' if prompt.on else 'on'}'", group)
                continue
            used += group.rows
            most_votes = max(most_votes, len(prompt.on) * len(prompt.off))
            places.append(shelf.put(prompt))
        prompts = Shelved(shelf, places)
        left_out = self.pick.left_out
        return Recorded(
            self.source, digest, "scores", given, used, left_out, failures, self.tally, prompts, {}, most_votes
        )

    def _drop(self, reason: str, group: _PromptGroup) -> None:
        self.tally.add(reason, group.number)
        self.tally.drops[reason] += group.rows - 1

    def _prompt(self, group: _PromptGroup) -> RecordedPrompt:
        """A prompt with its scored candidates, in the order of the file."""
        rows = []
        place = group.last
        while place >= 0:
            rows.append(self.shelf.get(place))
            place = rows[-1].before
        sides = {
            source: tuple((row.completion, row.score) for row in reversed(rows) if row.source == source)
            for source in ("on", "off")
        }
        return RecordedPrompt(rows[0].prompt, sides["on"], sides["off"])


def _reader(
    source: str, first: Sequence[DataRow], tally: Tally, prompts: int | None, seed: int
) -> tuple[_Pairs | _Scores, frozenset[str]]:
    """Reader of a recorded file by the columns of its first row, and the columns it needs. Raises BadData."""
    if not first:
        raise BadData(empty(source))
    names = first[0].keys()
    missing = {form: [name for name in columns if name not in names] for form, columns in RECORDED.items()}
    if not missing["pairs"] and not missing["scores"]:
        raise BadData(
            f"{source}: columns of both recorded forms found; keep either prompt, a, b, preference or prompt, source, "
            "completion, score"
        )
    if not missing["scores"]:
        return _Scores(source, tally, prompts, seed), frozenset(RECORDED["scores"])
    if not missing["pairs"]:
        return _Pairs(source, tally), frozenset(RECORDED["pairs"])
    if names >= set(ALPACA_EVAL.values()):
        return _Pairs(source, tally, ALPACA_EVAL), frozenset(ALPACA_EVAL.values())
    if not layouts_of(set(map(canonical, names))):
        near = min(missing.values(), key=len)
        raise BadData(f"{source}: column {listed(near)} missing; found: {listed(names)}; {FORMS}")
    reading = fit(source, first, {})
    return _LaidOut(source, tally, reading), reading.wanted


def _prompt(row: DataRow) -> str:
    """Prompt of a recorded row as text. Raises Unusable."""
    text = prompt_text(text_in(row, "prompt"))
    if not text.strip():
        raise Unusable("empty `prompt`")
    return text


def _completion(row: DataRow, column: str) -> str:
    """Completion of a recorded row, possibly empty. Raises Unusable."""
    value = text_in(row, column)
    if isinstance(value, str):
        return value
    if len(value) > 1:
        raise Unusable(f"`{column}` has more than one turn")
    return value[0]["content"]


def _number(value: Any, where: str, fix: str) -> float | None:
    """`value` as a finite number; None if it is empty, null or not finite. Raises BadData for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise BadData(f"{where}: {short(value)} found; {fix}") from None
    return number if math.isfinite(number) else None
