"""Prompts of preference data in the form of the meter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from stagealign.base.reasoning import answer_in_data
from stagealign.boundary.sampling import MeterPrompt

if TYPE_CHECKING:
    from stagealign.data.preferences import PreferenceRow


class MeterPrompts(Sequence[MeterPrompt]):
    """Prompts of preference data as a sequence; each is built when it is read, so the data may be large."""

    def __init__(self, rows: "Sequence[PreferenceRow]"):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> MeterPrompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[MeterPrompt]: ...
    def __getitem__(self, at: int | slice) -> MeterPrompt | list[MeterPrompt]:
        return [_item(row) for row in self._rows[at]] if isinstance(at, slice) else _item(self._rows[at])


def _item(row: "PreferenceRow") -> MeterPrompt:
    answers = [answer_in_data(text) for text in (row.chosen, row.rejected)]
    ends = [name for name, answer in zip(("chosen", "rejected"), answers, strict=True) if not answer.finished]
    return MeterPrompt(
        row.hash,
        row.prompt_text,
        tuple(answer.text.strip() for answer in answers),  # as samples are, so that equal texts tie
        row.messages,
        reasoned=sum(answer.reasoned for answer in answers),
        marked=sum(answer.marked for answer in answers),
        failed=f"its `{ends[0]}` ends inside its reasoning, without an answer; correct the data" if ends else None,
    )
