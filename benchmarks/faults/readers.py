"""Readers of user files, each with a check of what it read; and the tally of their outcomes."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagealign.base.errors import StagealignError

Reader = Callable[[Path, int], None]
"""Reads a file with this many rows; raises AssertionError if rows are neither used nor counted."""


def preferences(path: Path, count: int) -> None:
    from stagealign.data.preferences import read_preferences

    for most in (None, 2):
        _added_up(read_preferences(str(path), most))


def recordings(path: Path, count: int) -> None:
    from stagealign.oracle.recorded import votes_by_prompt
    from stagealign.oracle.recorded_file import read_recorded

    recorded = read_recorded(path, 2)
    _added_up(recorded)
    if recorded.form == "scores":
        assert all(votes.votes_on + votes.votes_off >= 1 for votes in votes_by_prompt(recorded))


def comparisons(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.comparisons import read_comparisons
    from stagealign.evaluate.alpaca_eval.lc_win_rate import lc_win_rates

    judged = read_comparisons(str(path))
    assert sum(len(given.prompts) for given in judged.values()) <= max(count, 1) * 2
    difficulty = path.parent / "difficulty.csv"
    lines = "".join(f"{n},{n / 10}\n" for n in range(-5, 10))
    difficulty.write_text(f"prompt_index,instruction_difficulty\n{lines}")
    for row in lc_win_rates(path, difficulty):
        assert row.n + row.failed == len(judged[row.generator].prompts)


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
    assert all((answer.preference is None) == (answer.failed is not None) for answer in answers.values())


def kept_answers(path: Path, count: int) -> None:
    from stagealign.evaluate.alpaca_eval.answers import KeptAnswers

    kept = KeptAnswers(path)
    lines = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    assert lines == kept.damaged + sum(map(len, kept.bills.values())), "lines do not add up"


def rows_of(kind: str) -> Reader:
    """Reader of rows of a class of `data.records`."""

    def read(path: Path, count: int) -> None:
        from stagealign.data import records

        lines = path.read_bytes().count(b"\n") + 1
        assert len(records.read_rows(path, getattr(records, kind))) <= lines

    return read


def _added_up(data: Any) -> None:
    """Raises AssertionError if rows are neither used nor counted."""
    if hasattr(data, "repeated"):
        used = len(data.rows) + data.repeated
        assert all(row.prompt_text.strip() and row.chosen.strip() and row.rejected.strip() for row in data.rows)
    else:
        used = data.used
    total = used + data.not_chosen + data.drops.total()
    assert data.given == total, f"{data.given} rows given, {total} accounted for"


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
"""Name -> reader."""
LINES = {"prompts", "candidates", "labelled pairs", "kept answers"}
"""Readers of the project's own files, which are always JSON lines."""
OWN = {
    "pairs": "recorded",
    "scores": "recorded",
    "implicit": "preferences",
    "labelled": "labelled pairs",
    "answers": "kept answers",
}


class Tally:
    """Number of files by reader and outcome, and the faults."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[tuple[str, str]] = []

    def read(self, name: str, reader: Callable[[Path, int], None], path: Path, count: int) -> None:
        """Counts the outcome of one reader on one file."""
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
