"""The prompts of preference data, as the meter takes them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from stagealign.boundary.sampling import Item

if TYPE_CHECKING:
    from stagealign.data.preferences import PreferenceRow


class Items(Sequence[Item]):
    """The prompts of preference data, each made when it is asked for."""

    def __init__(self, rows: "Sequence[PreferenceRow]"):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        return [_item(row) for row in self._rows[at]] if isinstance(at, slice) else _item(self._rows[at])


def _item(row: "PreferenceRow") -> Item:
    return Item(row.hash, row.prompt_text, (row.chosen, row.rejected), row.messages)
