"""Instruction difficulties, found by the prompt itself wherever it is known."""

from collections.abc import Mapping
from dataclasses import dataclass

from stagealign.base.errors import BadData
from stagealign.data.tables import Tally
from stagealign.evaluate.alpaca_eval.comparisons import (
    PROMPT,
    PromptKey,
    UnusableRow,
    checked_rows,
    number_in,
    prompt_key,
    whole_table,
)
from stagealign.evaluate.alpaca_eval.official_prompts import official_index

DIFFICULTY = "instruction_difficulty"
INDEX = ("prompt_index", "index", "")
"""Possible names of the column with a prompt's index, by precedence; published difficulties leave the name empty."""


@dataclass(frozen=True)
class Difficulties:
    """Instruction difficulty by prompt, in logits of the official model."""

    by_index: Mapping[int, float]
    """By number, ascending: AlpacaEval's own, unless the file has prompts of its own."""
    by_hash: Mapping[str, float]
    """By prompt hash; empty for a file that only numbers its prompts, as the published one does."""

    def __len__(self) -> int:
        return len(self.by_hash or self.by_index)

    def of(self, prompt: PromptKey) -> float | None:
        """Difficulty of a prompt; None if the file has none.

        A prompt that is known by its text is never looked up by its `prompt_index`, which may be a place in some file.
        """
        if prompt.hash is None:
            return None if prompt.index is None else self.by_index.get(prompt.index)
        if self.by_hash:
            return self.by_hash.get(prompt.hash)
        number = official_index(prompt.hash)
        return None if number is None else self.by_index.get(number)


def read_difficulty(source: str) -> Difficulties:
    """Instruction difficulties of a file: published, or with columns prompt_index, prompt_hash or instruction.

    Raises BadData.
    """
    unit, rows = checked_rows(source, {INDEX[0]: (*INDEX[1:], "prompt_hash", *PROMPT), DIFFICULTY: ()})
    tally, by_index, by_hash = Tally(unit), dict[int, float](), dict[str, float]()
    for number, row in rows:
        try:
            prompt = prompt_key(row, INDEX)
            if prompt.hash in by_hash or (prompt.hash is None and prompt.index in by_index):
                raise UnusableRow(f"prompt_index {prompt} found again")
            value = number_in(row, DIFFICULTY)
            if prompt.hash is not None:
                by_hash[prompt.hash] = value
            if prompt.index is not None:
                by_index[prompt.index] = value
        except UnusableRow as error:
            tally.add(str(error), number)
    whole_table(source, tally, by_hash or by_index)
    if by_hash and by_index and len(by_hash) != len(by_index):
        raise BadData(
            f"{source}: some rows name their prompt and others only number it; give every row the same columns"
        )
    return Difficulties(dict(sorted(by_index.items())), by_hash)
