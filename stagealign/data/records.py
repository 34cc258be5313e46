"""Rows of the files that artifacts exchange: prompts, candidates, pairs. Joined by prompt hash, never by position."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from stagealign.base.errors import BadData
from stagealign.base.shapes import ANY, FLAG, NUMBER, TEXT, WHOLE, Or, misfit


def prompt_hash(prompt: str) -> str:
    """First 16 hex digits of the sha256 of the prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Prompt:
    """A request to the policy, before any chat template."""

    text: str
    split: str
    """`train`, `validation` or `test`."""
    title: str = ""

    @property
    def hash(self) -> str:
        return prompt_hash(self.text)


@dataclass(frozen=True, slots=True)
class CandidateKey:
    """Key of a candidate within one file; rows of two files are joined by it."""

    prompt: str
    """Prompt hash."""
    source: str
    index: int


@dataclass(frozen=True)
class Candidate:
    """A completion of one prompt that waits for a ranking."""

    prompt: str
    completion: str
    source: str
    index: int
    """Place among the candidates of its prompt and source, from 0."""
    truncated: bool = False
    """True if the completion reached the token limit before it ended."""
    tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    """Sampled token ids, without the end token; None for human text."""
    logp: float | None = None
    """Log-probability under the policy that sampled it, at temperature 1, in nats, end token included."""
    end: int | None = None
    """Id of the end token that was drawn; None if the completion was truncated, and for human text."""

    @property
    def sampled(self) -> tuple[int, ...] | None:
        """Token ids as they were sampled, the end token included; None for human text, or if its end is not known."""
        if self.token_ids is None or not (self.truncated or self.end is not None):
            return None
        return self.token_ids if self.end is None else (*self.token_ids, self.end)

    @property
    def key(self) -> CandidateKey:
        return CandidateKey(prompt_hash(self.prompt), self.source, self.index)


@dataclass(frozen=True)
class Pair:
    """A labelled pair: one training example."""

    prompt: str
    chosen: str
    rejected: str
    source: str
    margin: float
    """Oracle score of chosen minus that of rejected; at least 0."""
    chosen_truncated: bool = False
    rejected_truncated: bool = False
    chosen_ids: tuple[int, ...] | None = None
    """Sampled token ids, the end token included; None for text, which is tokenised with its prompt."""
    rejected_ids: tuple[int, ...] | None = None


RowT = TypeVar("RowT")
"""A dataclass; each field is text, a number or a flag, and may allow None."""


def write_rows(path: Path, rows: Iterable[Any]) -> int:
    """Writes rows to `path`, one JSON object per line; returns their number."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else _columns(row), ensure_ascii=True) + "\n")
            count += 1
    return count


def _columns(row: Any) -> dict[str, Any]:
    """Columns of a row; a pair of texts has none for ids."""
    return {name: value for name, value in asdict(row).items() if value is not None or name not in PAIR_IDS}


def read_dicts(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of a JSON-lines file.

    Raises BadData, naming file and line, for a line that is not UTF-8 or not a JSON object.
    """
    return _objects(path)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                row = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise BadData(f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0][:200]
                raise BadData(f"{path}, line {number}: not JSON ({reason}); one object a line is expected") from error
            if not isinstance(row, dict):
                raise BadData(f"{path}, line {number}: {type(row).__name__} found; one JSON object a line is expected")
            yield row


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """Rows of `path` as `kind`, a dataclass.

    Raises BadData if a row lacks a column, has an unknown column or a value of another type.
    """
    rows = []
    shape, columns = _shape_of(kind)  # type: ignore[arg-type]
    for number, row in enumerate(_objects(path), 1):
        wrong = None
        for name in IDS_COLUMNS & row.keys():
            if isinstance(row[name], list):
                wrong = wrong or misfit(row[name], IDS, name)
                row[name] = tuple(row[name])
        try:
            rows.append(kind(**row))
        except TypeError as error:
            raise BadData(
                f"{path}, line {number}: columns {', '.join(row)[:200]} do not fit {kind.__name__} ({columns})"
            ) from error
        wrong = wrong or misfit({name: value for name, value in row.items() if name not in IDS_COLUMNS}, shape)
        if wrong:
            raise BadData(f"{path}, line {number}: {wrong}; build the artifact again")
    return rows


def _shape(annotation: Any) -> Any:
    """The shape of a field's value in a file."""
    kinds: dict[Any, Any] = {str: TEXT, int: WHOLE, bool: FLAG, float: NUMBER}
    if annotation in kinds:
        return kinds[annotation]
    (inner,) = [argument for argument in get_args(annotation) if argument is not type(None)]
    return Or(kinds.get(inner, ANY))


IDS = [WHOLE]
PAIR_IDS = {"chosen_ids", "rejected_ids"}
IDS_COLUMNS = {"token_ids", *PAIR_IDS}


@cache
def _shape_of(kind: type) -> tuple[dict[str, Any], str]:
    """(shape of a row of this kind, names of its columns as text)."""
    hints = get_type_hints(kind)
    columns = [column.name for column in fields(kind)]
    return {f"{name}?": _shape(hints[name]) for name in columns}, ", ".join(columns)


def asked_prompts(folder: Path, splits: Iterable[str], part: Sequence[int] | None = None) -> list[Prompt]:
    """Prompts of these splits in the folder's `prompts.jsonl`, each text once, in order of first appearance.

    `part` is (k, n): only the k-th of n equal parts, from 1. Raises BadData for a part without prompts.
    """
    rows, wanted = read_rows(folder / "prompts.jsonl", Prompt), set(splits)
    unique = list({prompt.text: prompt for prompt in rows if prompt.split in wanted}.values())
    if part is None:
        return unique
    k, n = part
    chosen = unique[len(unique) * (k - 1) // n : len(unique) * k // n]
    if not chosen:
        raise BadData(f"{folder / 'prompts.jsonl'}: {len(unique)} prompts cannot be cut into the scale's {n} parts")
    return chosen


def sampled_facts(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Counts for a record: candidates, their tokens, truncated ones and empty ones."""
    return {
        "candidates": len(candidates),
        "tokens": sum(candidate.tokens or 0 for candidate in candidates),
        "truncated": sum(candidate.truncated for candidate in candidates),
        "empty": sum(not candidate.completion for candidate in candidates),
    }


def by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates grouped by prompt, in order of first appearance."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.prompt, []).append(candidate)
    return groups


class Drops(Counter[str]):
    """Rows left out, by reason; part of every result."""

    def check(self, given: int, used: int) -> None:
        """Raises AssertionError if rows went missing without a reason."""
        assert given == used + self.total(), f"{given} rows in, {used} used, {self.total()} dropped: {dict(self)}"
