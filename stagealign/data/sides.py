"""Readers of rows: from the columns of a layout to a prompt with two answers; `layouts.py` says which is whose."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stagealign.data.formats import DataRow
from stagealign.data.texts import Unusable, blank, given_in, unpacked

TIE = "a tie: neither answer is preferred"


class Sides(NamedTuple):
    """A prompt with two answers, as a row has them: texts or conversations that are not yet read."""

    prompt: Any
    """None if the prompt is the start of both answers."""
    first: Any
    second: Any
    share: float = 1.0
    """1.0 if the first answer is preferred, 0.0 if the second is, 0.5 for a tie."""
    said: str = ""
    """What was left out of the row, for a note; empty for nothing."""

    @property
    def in_order(self) -> "Sides":
        """The preferred answer first. Raises Unusable for a tie."""
        if self.share == 0.5:
            raise Unusable(TIE)
        return self if self.share > 0.5 else Sides(self.prompt, self.second, self.first, 1.0, self.said)


def pairs(prompt: str | None, chosen: str = "chosen", rejected: str = "rejected") -> Callable[[DataRow], Sides]:
    """Reader of rows with a preferred and a rejected answer."""

    def read(row: DataRow) -> Sides:
        asked, good, bad = row.get(prompt or ""), row.get(chosen), row.get(rejected)
        if type(asked) is type(good) is type(bad) is str:
            return Sides(asked, good, bad)
        asked = None if prompt is None else given_in(row, prompt)
        good, bad = given_in(row, chosen), given_in(row, rejected)
        if isinstance(good, list) and isinstance(bad, list):
            good, bad = _only(good, chosen), _only(bad, rejected)
        return Sides(asked, good, bad)

    return read


def _only(value: list[Any], column: str) -> Any:
    """The text of a list of one text; any other value as it is. Raises Unusable for several texts."""
    if not value or not isinstance(value[0], str) or not all(isinstance(item, str) for item in value):
        return value
    if len(value) > 1:
        raise Unusable(f"`{column}` is a list of several texts")
    return value[0]


def _alpaca(row: DataRow) -> Any:
    """Instruction and input as one prompt."""
    parts = [row.get("instruction"), row.get("input")]
    if not all(isinstance(part, str) or blank(part) for part in parts):
        raise Unusable("`instruction` or `input` is not text")
    return "\n".join(str(part) for part in parts if not blank(part))


def alpaca_pairs(row: DataRow) -> Sides:
    """LLaMA-Factory's alpaca format: instruction and input, chosen and rejected."""
    return Sides(_alpaca(row), given_in(row, "chosen"), given_in(row, "rejected"))


def alpaca_outputs(row: DataRow) -> Sides:
    """LLaMA-Factory's older alpaca format: `output` lists both answers, the preferred one first."""
    outputs = unpacked(given_in(row, "output"))
    if not isinstance(outputs, list) or len(outputs) != 2:
        raise Unusable("`output` is not a list of two answers, the preferred one first")
    return Sides(_alpaca(row), *outputs)


def first_of_each(row: DataRow) -> Sides:
    """RewardBench 2: lists of right and of wrong answers."""
    good, bad = (unpacked(given_in(row, column)) for column in ("chosen", "rejected"))
    if not (isinstance(good, list) and isinstance(bad, list) and good and bad):
        raise Unusable("`chosen` or `rejected` is not a list of answers")
    said = "more than two candidates: the first of `chosen` and of `rejected` are used" if len(good + bad) > 2 else ""
    return Sides(given_in(row, "prompt"), good[0], bad[0], said=said)


def openai(row: DataRow) -> Sides:
    """OpenAI's preference format: the prompt's messages in `input`."""
    asked = unpacked(given_in(row, "input"))
    if isinstance(asked, dict):
        for column in ("tools", "functions"):
            if not blank(asked.get(column)):
                raise Unusable(f"uses `{column}`, which are not rendered")
        asked = asked.get("messages")
    return Sides(asked, given_in(row, "preferred_output"), given_in(row, "non_preferred_output"))


def swift(rejected: str) -> Callable[[DataRow], Sides]:
    """Reader of rows whose `messages` end with the preferred answer."""

    def read(row: DataRow) -> Sides:
        turns, bad = unpacked(given_in(row, "messages")), unpacked(given_in(row, rejected))
        if not isinstance(turns, list) or len(turns) < 2:
            raise Unusable("`messages` is not a conversation that ends with the preferred answer")
        if isinstance(bad, list) and len(bad) > 1:
            return Sides(None, turns, bad)
        return Sides(turns[:-1], turns[-1:], [{"role": "assistant", "content": bad}] if isinstance(bad, str) else bad)

    return read


Verdict = Callable[[DataRow], float]


def contest(prompt: str | None, first: str, second: str, verdict: Verdict) -> Callable[[DataRow], Sides]:
    """Reader of rows with two answers and a verdict."""

    def read(row: DataRow) -> Sides:
        asked = None if prompt is None else given_in(row, prompt)
        return Sides(asked, given_in(row, first), given_in(row, second), verdict(row))

    return read


def words(column: str, first: Sequence[str], second: Sequence[str], tie: Sequence[str] = ()) -> Verdict:
    """Verdict by a column of words or numbers."""
    shares = {word: share for words, share in ((first, 1.0), (second, 0.0), (tie, 0.5)) for word in words}

    def verdict(row: DataRow) -> float:
        value = given_in(row, column)
        word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
        if word not in shares:
            raise Unusable(f"`{column}` is none of {', '.join(shares)}")
        return shares[word]

    return verdict


def sign(column: str) -> Verdict:
    """Verdict by a number: negative for the first answer, positive for the second."""

    def verdict(row: DataRow) -> float:
        number = number_in(given_in(row, column))
        if number is None:
            raise Unusable(f"`{column}` is not a number")
        return 0.5 if number == 0 else float(number < 0)

    return verdict


def number_in(value: Any) -> float | None:
    """A cell as a finite number; None for anything else."""
    try:
        number = None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number is None or number - number != 0 else number


def one_of_three(row: DataRow) -> float:
    """Verdict by three columns, of which one is 1."""
    won = [number_in(row.get(f"winner_{name}")) or 0.0 for name in ("model_a", "model_b", "tie")]
    if sorted(won) != [0.0, 0.0, 1.0]:
        raise Unusable("not exactly one of `winner_model_a`, `winner_model_b`, `winner_tie` is 1")
    return (1.0, 0.0, 0.5)[won.index(1.0)]


def arena_lists(row: DataRow) -> Sides:
    """A row whose texts are lists of turns."""
    asked, first, second = (unpacked(given_in(row, name)) for name in ("prompt", "response_a", "response_b"))
    share = one_of_three(row)
    if all(isinstance(value, str) for value in (asked, first, second)):
        return Sides(asked, first, second, share)
    if not all(isinstance(value, list) and len(value) == len(asked) for value in (asked, first, second)) or not asked:
        raise Unusable("`prompt`, `response_a` and `response_b` are not lists of as many turns")
    return Sides(None, _zipped(asked, first), _zipped(asked, second), share)


def _zipped(asked: list[Any], answered: list[Any]) -> list[Mapping[str, Any]]:
    turns = zip(asked, answered, strict=True)
    return [
        {"role": role, "content": said}
        for pair in turns
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def ranked(prompt: str, candidates: Callable[[DataRow], list[tuple[Any, float | None]]]) -> Callable[[DataRow], Sides]:
    """Reader of rows with rated candidates: the best against the worst, the first of equal ones.

    Source: distilabel `FormatTextGenerationDPO`. A row whose ratings are all equal is a tie.
    """

    def read(row: DataRow) -> Sides:
        asked = given_in(row, prompt)
        rated = [(text, rating) for text, rating in candidates(row) if rating is not None and not blank(text)]
        if len(rated) < 2:
            raise Unusable("fewer than two candidates with a rating")
        best, worst = max(rated, key=lambda one: one[1]), min(rated, key=lambda one: one[1])
        if best[1] == worst[1]:
            raise Unusable(TIE)
        said = "more than two candidates: the best and the worst are used" if len(rated) > 2 else ""
        return Sides(asked, best[0], worst[0], said=said)

    return read


def generations(column: str) -> Callable[[DataRow], list[tuple[Any, float | None]]]:
    """Candidates in `generations`, their ratings in another list."""

    def candidates(row: DataRow) -> list[tuple[Any, float | None]]:
        texts, ratings = unpacked(given_in(row, "generations")), unpacked(given_in(row, column))
        if not (isinstance(texts, list) and isinstance(ratings, list) and len(texts) == len(ratings)):
            raise Unusable(f"`generations` and `{column}` are not lists of the same length")
        return [(text, number_in(rating)) for text, rating in zip(texts, ratings, strict=True)]

    return candidates


def objects(column: str, text: str, rating: str, sign: int = 1) -> Callable[[DataRow], list[tuple[Any, float | None]]]:
    """Candidates as objects with a text and a rating; `sign` is -1 for ranks, of which 1 is best."""

    def candidates(row: DataRow) -> list[tuple[Any, float | None]]:
        items = records(unpacked(given_in(row, column)))
        if not items:
            raise Unusable(f"`{column}` is not a list of objects with `{text}` and `{rating}`")
        ratings = [number_in(item.get(rating)) for item in items]
        return [
            (item.get(text), None if value is None else sign * value)
            for item, value in zip(items, ratings, strict=True)
        ]

    return candidates


def records(value: Any) -> list[Mapping[str, Any]]:
    """A list of objects, also from the object of lists that `datasets` makes of one; empty for anything else."""
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(items, list) for items in columns) and len({len(items) for items in columns}) == 1:
        return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return list(value) if isinstance(value, list) and all(isinstance(item, dict) for item in value) else []


PAIR_VALUES = {"left": 1.0, "right": 0.0, "equal": 0.5, "tie": 0.5}


def label_studio(row: DataRow) -> Sides:
    """A task of Label Studio's export with the `Pairwise` tag: the majority of its annotations decides."""
    data, annotations = unpacked(given_in(row, "data")), records(unpacked(given_in(row, "annotations")))
    if not isinstance(data, dict):
        raise Unusable("`data` is not an object")
    shares = [
        PAIR_VALUES.get(str(result["value"].get("selected")).lower())
        for annotation in annotations
        if not annotation.get("was_cancelled")
        for result in records(annotation.get("result"))
        if result.get("type") == "pairwise" and isinstance(result.get("value"), dict)
    ]
    if not shares or None in shares:
        raise Unusable("`annotations` has no pairwise choice of `left` or `right`")
    answers = [name for name in ("answer1", "answer2", "response1", "response2", "text1", "text2") if name in data]
    if len(answers) != 2 or blank(data.get("prompt")):
        raise Unusable("`data` has not `prompt`, `answer1` and `answer2`")
    mean = sum(share for share in shares if share is not None) / len(shares)
    return Sides(data["prompt"], data[answers[0]], data[answers[1]], 0.5 if mean == 0.5 else float(mean > 0.5))


def argilla_ranking(row: DataRow) -> float:
    """Verdict of Argilla's ranking question: the mean rank of each answer over the submitted responses."""
    ranks: dict[str, list[float]] = {"response_1": [], "response_2": []}
    for response in records(unpacked(given_in(row, "preference"))):
        if response.get("status", "submitted") == "submitted":
            for item in records(response.get("value")):
                rank, name = number_in(item.get("rank")), str(item.get("value")).replace("-", "_")
                if name in ranks and rank is not None:
                    ranks[name].append(rank)
    first, second = ranks.values()
    if not first or len(first) != len(second):
        raise Unusable("`preference` has no submitted ranking of both responses")
    return 0.5 if sum(first) == sum(second) else float(sum(first) < sum(second))
