"""Reader of preference data from a file or the hub, in any preference format of TRL; every row is checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from stagealign.base.errors import BadData
from stagealign.base.words import listed
from stagealign.data.formats import DataRow
from stagealign.data.picking import Pick, Shelf, Shelved, positive, some
from stagealign.data.records import Drops, prompt_hash
from stagealign.data.tables import Tally, numbered_rows
from stagealign.data.texts import Messages, Unusable, prompt_text, text_in

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
NEEDED = "needed are `chosen` and `rejected`, and `prompt` unless it is the start of both"


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
        return self.chosen == self.rejected


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
        if self.ties:
            notes.append(f"{self.ties} prompts have a chosen equal to their rejected.")
        return notes


def read_preferences(
    source: str, prompts: int | None = None, seed: int = 0, split: str | None = None
) -> PreferenceData:
    """Preferences of `source` in random order: `prompts` of them chosen at random, or all for None.

    `source`: a file (.jsonl, .json, .csv, also with .gz, or .parquet), else a hub data set `name[:config][@revision]`.
    Rows may have any preference format of TRL: explicit or implicit prompt, text or conversations. In a CSV file a
    conversation is a cell of JSON. An implicit prompt is everything before the last turn. In text without turns it is
    the start that both share, cut at the end of a word. Chosen rows are stored on disk; memory grows by a few numbers
    per chosen prompt. Raises BadData.
    Source: trl 1.16 `data_utils.maybe_extract_prompt`. Deviations: no cut inside a word; a row whose two conversations
    differ before the last turn is dropped; a prompt repeated at the start of both completions is removed.
    """
    positive(prompts)
    unit, rows = numbered_rows(source, ("prompt", "chosen", "rejected"), split)
    pick: Pick[_Merged] = Pick(prompts, seed)
    shelf: Shelf[PreferenceRow] = Shelf()
    tally, given, explicit = Tally(unit), 0, False
    for number, row in rows:
        if not given:  # the first row names the columns, as a header does
            for column in ("chosen", "rejected"):
                _present(source, row, column)
            explicit = "prompt" in row
        given += 1
        try:
            preference = _preference(row, explicit)
        except Unusable as error:
            tally.add(str(error), number)
            continue
        group = pick.group(preference.prompt_text, partial(_merged, shelf, preference))
        if group is not None:
            group.rows += 1
    some(source, given, given - tally.drops.total(), tally)
    merged = pick.in_order()
    return PreferenceData(
        source=source,
        rows=Shelved(shelf, [group.first for group in merged]),
        given=given,
        repeated=sum(group.rows for group in merged) - len(merged),
        not_chosen=pick.left_out,
        tally=tally,
        asked=prompts,
    )


def _preference(row: DataRow, explicit: bool) -> PreferenceRow:
    """The row's prompt and candidates. Raises Unusable."""
    if ("prompt" in row) != explicit:
        raise Unusable("`prompt` is in some rows only, unlike in the first")
    chosen, rejected = text_in(row, "chosen"), text_in(row, "rejected")
    prompt = text_in(row, "prompt") if explicit else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        preference = _split_text(prompt, chosen, rejected)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise Unusable("one of `chosen` and `rejected` is text, the other a conversation")
    else:
        preference = _split_turns(prompt, chosen, rejected)
    last = preference.messages[-1]["content"] if preference.messages else preference.prompt_text
    for name, text in (("prompt", last), ("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not text.strip():
            raise Unusable(f"empty `{name}`")
    return preference


def _split_turns(prompt: str | Messages | None, chosen: Messages, rejected: Messages) -> PreferenceRow:
    """Prompt and completions of two conversations that differ in their last turn only. Raises Unusable otherwise."""
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise Unusable("the last turn of `chosen` or `rejected` is not the assistant's")
    shared = chosen[:-1]
    if shared != rejected[:-1]:
        raise Unusable("`chosen` and `rejected` part before their last turn")
    if isinstance(prompt, tuple):
        before = shared if shared[: len(prompt)] == prompt else prompt + shared
    elif prompt is not None and not shared:
        before = ({"role": "user", "content": prompt},)
    else:  # a text prompt beside whole conversations repeats their first turn
        before = shared
    if not before:
        raise Unusable("no prompt before the completions")
    return PreferenceRow(before, chosen[-1]["content"], rejected[-1]["content"])


def _split_text(prompt: str | Messages | None, chosen: str, rejected: str) -> PreferenceRow:
    """Prompt and completions of two texts. Raises Unusable if an implicit prompt cannot be found."""
    if prompt is not None:
        turns = isinstance(prompt, str) and prompt.rstrip().endswith(ANSWER)
        if turns and chosen.startswith(str(prompt)) and rejected.startswith(str(prompt)):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return PreferenceRow(prompt, chosen, rejected)
    if ANSWER in chosen or ANSWER in rejected:
        cut = chosen.rfind(ANSWER) + len(ANSWER)
        if ANSWER not in chosen or chosen[:cut] != rejected[: rejected.rfind(ANSWER) + len(ANSWER)]:
            raise Unusable("`chosen` and `rejected` part before their last turn")
    else:
        cut = _shared(chosen, rejected)
        if not cut:
            raise Unusable("no `prompt`, and no start that `chosen` and `rejected` share")
    return PreferenceRow(chosen[:cut], chosen[cut:], rejected[cut:])


def _shared(a: str, b: str) -> int:
    """Length of the start that two texts share, cut at the end of a word so that both completions are not empty."""
    if a == b:
        return 0
    left = min(len(a.rstrip()), len(b.rstrip())) - 1
    end = max(0, min(sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False))), left))
    while end > 0 and _spelled(a[end - 1]) and (_spelled(a[end]) or _spelled(b[end])):
        end -= 1
    return end - (end > 0 and a[end - 1] == " ")  # as in TRL, the space belongs to the completion


def _spelled(letter: str) -> bool:
    """True for a letter of a script with spaces between words; Thai, Chinese and other higher code points have none."""
    return letter.isalnum() and letter < "\u0e00"


@dataclass(slots=True)
class _Merged:
    first: int
    """Place of the first row's candidates."""
    rows: int = 0


def _merged(shelf: Shelf[PreferenceRow], first: PreferenceRow) -> _Merged:
    return _Merged(shelf.put(first))


def _present(source: str, row: DataRow, column: str) -> None:
    if column not in row:
        raise BadData(f"{source}: column {column!r} missing; found: {listed(row)}; {NEEDED}")
