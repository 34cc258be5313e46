"""Readers of files that a user may give, each with what must hold of what it read; and the tally of what came of it."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError

Reader = Callable[[Path, int], None]
"""Reads a file that holds so many rows; fails where what it read does not add up."""


def preferences(path: Path, count: int) -> None:
    from stagealign.data.preferences import read_preferences

    for most in (None, 2):
        _added_up(read_preferences(str(path), most))


def recordings(path: Path, count: int) -> None:
    from stagealign.oracle.recorded import votes_by_prompt
    from stagealign.oracle.recorded_file import read_recorded

    found = read_recorded(path, 2)
    _added_up(found)
    if found.form == "scores":
        assert all(one.votes_on + one.votes_off >= 1 for one in votes_by_prompt(found))


def comparisons(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.comparisons import read_comparisons
    from stagealign.evaluate.alpaca_eval.lc_win_rate import lc_win_rates

    found = read_comparisons(str(path))
    assert sum(len(given.prompts) for given in found.values()) <= max(count, 1) * 2
    difficulty = path.parent / "difficulty.csv"
    lines = "".join(f"{n},{n / 10}\n" for n in range(-5, 10))
    difficulty.write_text(f"prompt_index,instruction_difficulty\n{lines}")
    for row in lc_win_rates(path, difficulty):
        assert row.n + row.failed == len(found[row.generator].prompts)


def difficulty(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.difficulty import read_difficulty

    read_difficulty(str(path))


def weights(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.comparisons import read_weights

    read_weights(str(path))


def outputs(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval import rows

    battle = rows.read(str(path), str(path))
    assert len(battle.items) == len({item.hash for item in battle.items})


def annotations(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval import recorded, rows

    battle = rows.Battle((rows.BattleItem(1, "p", "x", "y"),), "g", "b", {})
    answers, _ = recorded.annotations(str(path), battle)
    assert all((one.preference is None) == (one.failed is not None) for one in answers.values())


def kept_answers(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.answers import KeptAnswers

    kept = KeptAnswers(path)
    lines = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    assert lines == kept.damaged + sum(map(len, kept.bills.values())), "lines do not add up"


def rows_of(kind: str) -> Reader:
    """Reads rows of a class of `data.records`."""

    def read(path: Path, count: int) -> None:
        from stagealign.data import records

        lines = path.read_bytes().count(b"\n") + 1
        assert len(records.read_rows(path, getattr(records, kind))) <= lines

    return read


def _added_up(found: Any) -> None:
    """Fails where rows are neither used nor counted."""
    if hasattr(found, "repeated"):
        used = len(found.rows) + found.repeated
        assert all(row.prompt_text.strip() and row.chosen.strip() and row.rejected.strip() for row in found.rows)
    else:
        used = found.used
    total = used + found.not_chosen + found.drops.total()
    assert found.given == total, f"{found.given} rows given, {total} accounted for"


READERS: dict[str, Reader] = {
    "preferences": preferences,
    "recorded": recordings,
    "comparisons": comparisons,
    "difficulty": difficulty,
    "weights": weights,
    "outputs": outputs,
    "annotations": annotations,
    "prompts": rows_of("Prompt"),
    "candidates": rows_of("Candidate"),
    "labelled pairs": rows_of("Pair"),
    "kept answers": kept_answers,
}
"""What reads a file that a user may give, each with what must hold of what it read."""
LINES = {"prompts", "candidates", "labelled pairs", "kept answers"}
"""Readers of files of our own, which are JSON lines and nothing else."""
OWN = {
    "pairs": "recorded",
    "scores": "recorded",
    "implicit": "preferences",
    "labelled": "labelled pairs",
    "answers": "kept answers",
}


class Tally:
    """What came of it: files by reader and outcome, and what must not be."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[tuple[str, str]] = []

    def read(self, name: str, reader: Callable[[Path, int], None], path: Path, count: int) -> None:
        """One file, one reader."""
        try:
            reader(path, count)
            outcome = "read"
        except StagealignError as error:
            message = str(error)
            outcome = "refused"
            if "\n" in message or len(message) > 3000 or not message.strip():
                outcome = "wrong"
                self.wrong.append((name, f"{name}: a message of {len(message)} characters: {message[:200]!r}"))
        except Exception as error:
            outcome = "wrong"
            (*_, last) = traceback.extract_tb(error.__traceback__)
            text = str(error).split("\n")[0][:160]
            self.wrong.append(
                (name, f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {text}")
            )
        self.counts[name, outcome] += 1
