"""Reader of preference data from a file or the hub, in any of the layouts of `layouts.py`; every row is checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from stagealign.base.words import listed
from stagealign.data.columns import FIRST, Reading, fit, parsed
from stagealign.data.formats import DataRow
from stagealign.data.picking import Pick, Shelf, Shelved, positive, some
from stagealign.data.records import Drops, prompt_hash
from stagealign.data.splitting import ANSWER, TURN
from stagealign.data.tables import Tally, opened_table
from stagealign.data.texts import Messages, Unusable, prompt_text


@dataclass(frozen=True)
class PreferenceRow:
    """One prompt with its two static candidates."""

    prompt: str | Messages
    """Text, or the conversation up to the completion."""
    chosen: str
    rejected: str

    @property
    def prompt_text(self) -> str:
        """The prompt as one text: its identity, and the input of an oracle without a chat template."""
        return prompt_text(self.prompt)

    @property
    def messages(self) -> Messages | None:
        r"""The prompt for a chat template; None if it is plain text without turns.

        Text in turns of `\n\nHuman:` and `\n\nAssistant:` (HH-RLHF) that ends with the latter is a conversation too.
        """
        if not isinstance(self.prompt, str):
            return self.prompt
        text = self.prompt.rstrip()
        if not (TURN.match(text) and text.endswith(ANSWER)):
            return None
        _, *turns = TURN.split(text.removesuffix(ANSWER))
        roles = {"Human": "user", "Assistant": "assistant"}
        return tuple(
            {"role": roles[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)
        )

    @property
    def hash(self) -> str:
        return prompt_hash(self.prompt_text)

    @property
    def tie(self) -> bool:
        """True if both candidates are the same text; such a row is kept and counts as a tie."""
        return self.chosen.strip() == self.rejected.strip()


@dataclass(frozen=True)
class PreferenceData:
    """Chosen prompts in random order, and the fate of every row: given = used + repeated + dropped + not chosen."""

    source: str
    rows: Sequence[PreferenceRow]
    given: int
    repeated: int
    """Rows whose prompt an earlier row of `rows` has; the candidates of the first row are kept."""
    not_chosen: int
    """Usable rows, including repeated ones, of prompts beyond the number asked for."""
    tally: Tally
    asked: int | None
    """Number of prompts asked for; None for all."""
    changes: Tally = field(default_factory=lambda: Tally("row"))
    """Rows of which something was taken off or read otherwise than it stands, by what was done."""
    layout: str = ""
    """Name and columns of the layout that was read."""
    unused: tuple[str, ...] = ()
    """Columns that were not read."""

    def __post_init__(self) -> None:
        self.drops.check(self.given, len(self.rows) + self.repeated + self.not_chosen)

    @property
    def drops(self) -> Drops:
        return self.tally.drops

    @property
    def ties(self) -> int:
        """Number of kept rows whose chosen equals their rejected."""
        return sum(row.tie for row in self.rows)

    def notes(self) -> list[str]:
        """Notes for the user about these rows, one sentence each."""
        notes = []
        if self.asked is not None and self.asked > len(self.rows):
            notes.append(f"{self.asked} prompts asked for, {len(self.rows)} found: all are used.")
        if self.repeated:
            notes.append(f"{self.repeated} rows repeat a prompt: merged, the candidates of its first row are used.")
        if self.drops:
            notes.append(f"{self.drops.total()} of {self.given} rows cannot be used: {self.tally}.")
        notes += self.taken()
        if self.ties:
            notes.append(f"{self.ties} prompts have a chosen equal to their rejected.")
        return notes

    def taken(self) -> list[str]:
        """Notes on how the rows were read, one sentence each: what was taken off, and which columns were not read."""
        notes = []
        if self.changes.drops:
            notes.append(f"Rows that were not taken as they stand: {self.changes}.")
        if self.unused:
            notes.append(f"Columns that were not read: {listed(self.unused)}; the layout is {self.layout}.")
        return notes


def read_preferences(
    source: str, prompts: int | None = None, seed: int = 0, split: str | None = None, columns: str | None = None
) -> PreferenceData:
    """Preferences of `source` in random order: `prompts` of them chosen at random, or all for None.

    `source`: a file (.jsonl, .json, .csv, also with .gz, or .parquet), a folder or a pattern of such files, a folder of
    `Dataset.save_to_disk`, else a hub data set `name[:config][@revision]`. Rows may have any of `LAYOUTS`, which is
    found by the columns of the first rows, or columns that `columns` names (`prompt=question,chosen=a,rejected=b`).
    An implicit prompt is everything before the last turn. In text without turns it is the start that both share, cut
    at the end of a word. Chosen rows are stored on disk; memory grows by a few numbers per chosen prompt. Raises
    BadData.
    Source: trl 1.16 `data_utils.maybe_extract_prompt`. Deviations: no cut inside a word; a row whose two conversations
    differ before the last turn is dropped; a prompt repeated at the start of both completions is removed.
    """
    positive(prompts)
    given = parsed(columns)
    table = opened_table(source, FIRST, split)
    reading = fit(source, table.first(), given)
    pick: Pick[_Merged] = Pick(prompts, seed)
    shelf: Shelf[PreferenceRow] = Shelf()
    tally, changes, count = Tally(table.unit), Tally(table.unit), 0
    for number, row in table.rows(reading.wanted):
        count += 1
        changed: list[str] = []
        try:
            preference = _preference(reading, row, changed)
        except Unusable as error:
            tally.add(str(error), number)
            continue
        for change in dict.fromkeys(changed):
            changes.add(change, number)
        group = pick.group(preference.prompt_text, partial(_merged, shelf, preference))
        if group is not None:
            group.rows += 1
    some(source, count, count - tally.drops.total(), tally)
    merged = pick.in_order()
    return PreferenceData(
        source=source,
        rows=Shelved(shelf, [group.first for group in merged]),
        given=count,
        repeated=sum(group.rows for group in merged) - len(merged),
        not_chosen=pick.left_out,
        tally=tally,
        asked=prompts,
        changes=changes,
        layout=str(reading.layout),
        unused=reading.unused,
    )


def _preference(reading: Reading, row: DataRow, changed: list[str]) -> PreferenceRow:
    """The row's prompt and candidates. Raises Unusable."""
    sides = reading.sides(row).in_order
    if sides.said:
        changed.append(sides.said)
    preference = PreferenceRow(*reading.split(sides, row, changed))
    last = preference.messages[-1]["content"] if preference.messages else preference.prompt_text
    for name, text in (("prompt", last), ("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not text.strip():
            raise Unusable(f"empty `{name}`")
    return preference


@dataclass(slots=True)
class _Merged:
    first: int
    """Place of the first row's candidates."""
    rows: int = 0


def _merged(shelf: Shelf[PreferenceRow], first: PreferenceRow) -> _Merged:
    return _Merged(shelf.put(first))
