"""The prompts of preference data, as the meter takes them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from stagealign.boundary.sampling import MeterPrompt

if TYPE_CHECKING:
    from stagealign.data.preferences import Preference


class MeterPrompts(Sequence[MeterPrompt]):
    """The prompts of preference data, each made when it is asked for."""

    def __init__(self, rows: "Sequence[Preference]"):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> MeterPrompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[MeterPrompt]: ...
    def __getitem__(self, at: int | slice) -> MeterPrompt | list[MeterPrompt]:
        return [_item(row) for row in self._rows[at]] if isinstance(at, slice) else _item(self._rows[at])


def _item(row: "Preference") -> MeterPrompt:
    return MeterPrompt(row.hash, row.prompt_text, (row.chosen, row.rejected), row.messages)
