"""Preference data and recorded judgments, from a file or the hub: checked row by row, without holding the rows.

Both choose their prompts by a keyed hash of the prompt's text: the order is random by seed, does not depend on the
order or the format of the file, and the first prompts of a larger choice are those of a smaller one.
"""

import codecs
import csv
import gzip
import hashlib
import heapq
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from stagealign.boundary import cross_votes, top_vote
from stagealign.errors import BadData
from stagealign.judged import Contest, Judged
from stagealign.records import Drops, prompt_hash
from stagealign.spec import stream

Message: TypeAlias = Mapping[str, str]
Messages: TypeAlias = tuple[Message, ...]
Row: TypeAlias = dict[str, Any]
Numbered: TypeAlias = Iterator[tuple[int, Row]]

LONGEST = 1 << 26
"""Bytes that a row may have; a longer one is a file in another format, or an attack on memory."""
CHUNK = 1 << 18
EXAMPLES = 3
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
NOT_DATA = ".arrow .bz2 .gz .pkl .pickle .tar .tsv .txt .xlsx .xz .yaml .yml .zip .zst".split()
PYTHON_TEXT = re.compile(r"\[\{\s*'\w+'\s*:")
NEEDED = "needed are `chosen` and `rejected`, and `prompt` unless it is the start of both"
RECORDED = {"pairs": ("prompt", "a", "b", "preference"), "scores": ("prompt", "source", "completion", "score")}
ANSWERS = {"a": 1.0, "b": 0.0, "tie": 0.5}
PREFERENCES = (
    'write how far a is preferred, from 0.0 (b wins) over 0.5 (tie) to 1.0 (a wins), or "a", "b", "tie", or '
    "AlpacaEval's 1 (a) to 2 (b); leave a failed judgment empty"
)


@dataclass(frozen=True)
class Preference:
    """One prompt with its two static candidates."""

    prompt: str | Messages
    """Text, or the conversation up to the completion."""
    chosen: str
    rejected: str

    @property
    def prompt_text(self) -> str:
        """The prompt as one text: of a conversation its only message, or all as `role: content`, a blank line between.

        It identifies the prompt, and is what an oracle without a chat template sees.
        """
        if isinstance(self.prompt, str):
            return self.prompt
        said = [message for message in self.prompt if message["content"].strip()]
        if len(said) == 1:
            return said[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)

    @property
    def messages(self) -> Messages | None:
        r"""The prompt for a chat template; None where it is plain text without turns.

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
        """Whether the two candidates are the same text: kept, whoever compares them finds a tie."""
        return self.chosen == self.rejected


@dataclass(frozen=True)
class Tally:
    """Rows left out, by reason, with the numbers of the first few."""

    unit: str
    """What the numbers count: `line` of a file, or `row` of a table from 1, without its header."""
    drops: Drops = field(default_factory=Drops)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, number: int) -> None:
        """One more row left out."""
        self.drops[reason] += 1
        first = self.examples.setdefault(reason, [])
        if len(first) < EXAMPLES:
            first.append(number)

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {count} ({self.unit}{'s' * (count > 1)} {', '.join(map(str, self.examples[reason]))}"
            f"{', ...' * (count > EXAMPLES)})"
            for reason, count in self.drops.most_common()
        )


@dataclass(frozen=True)
class PreferenceData:
    """Chosen prompts in random order, and what became of every row: given = used + repeated + dropped + not chosen."""

    source: str
    rows: list[Preference]
    given: int
    repeated: int
    """Rows whose prompt is in `rows` from an earlier row; that row's candidates are the ones kept."""
    not_chosen: int
    """Usable rows, repeated ones among them, of prompts beyond the number asked for."""
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
        """Rows kept whose chosen equals their rejected."""
        return sum(row.tie for row in self.rows)

    def notes(self) -> list[str]:
        """What a user should know about these rows, one sentence each."""
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
    """Preferences of `source`, `prompts` of them chosen at random, in random order; all for None.

    `source`: a file (.jsonl, .json, .csv, also with .gz, or .parquet), else a hub data set `name[:config][@revision]`.
    Any preference shape of TRL, told row by row: explicit or implicit prompt, text or conversations; in a CSV file a
    conversation is a cell of JSON. Where the prompt is implicit it is all before the last turn; of text without turns,
    the start that both share, never ending inside a word. Memory grows with `prompts`, not with the rows.
    Raises BadData.
    Source: trl 1.16 `data_utils.maybe_extract_prompt`. Deviations: no cut inside a word, a row whose two conversations
    part before the last turn is dropped, a prompt repeated at the start of both completions is taken off.
    """
    _positive(prompts)
    unit, rows = _rows(source, split)
    pick: _Pick[_Merged] = _Pick(prompts, seed)
    tally, given, explicit = Tally(unit), 0, False
    for number, row in rows:
        if not given:  # the first row names the columns, as a header does
            for column in ("chosen", "rejected"):
                _present(source, row, column)
            explicit = "prompt" in row
        given += 1
        try:
            preference = _preference(row, explicit)
        except _Unusable as error:
            tally.add(str(error), number)
            continue
        group = pick.group(preference.prompt_text, lambda kept=preference: _Merged(kept))  # type: ignore[misc]
        if group is not None:
            group.rows += 1
    _some(source, given, given - tally.drops.total(), tally)
    merged = pick.in_order()
    return PreferenceData(
        source=source,
        rows=[group.first for group in merged],
        given=given,
        repeated=sum(group.rows for group in merged) - len(merged),
        not_chosen=pick.left_out,
        tally=tally,
        asked=prompts,
    )


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt whose candidates were scored beforehand: (completion, score) by source, a higher score wins."""

    prompt: str
    on: tuple[tuple[str, float], ...]
    off: tuple[tuple[str, float], ...]

    @property
    def contest(self) -> Contest:
        return Contest(self.prompt, tuple(text for text, _ in self.on), tuple(text for text, _ in self.off))

    @property
    def judged(self) -> Judged:
        """The recorded scores as an oracle would have given them."""
        return Judged(tuple(score for _, score in self.on), tuple(score for _, score in self.off))


@dataclass
class Verdict:
    """What is recorded of one pair, seen from one order of its texts."""

    forward: float = 0.0
    """Sum of shares by which the first text is preferred, over records in this order."""
    forwards: int = 0
    backward: float = 0.0
    """The same sum (of the first text's shares), over records in the other order."""
    backwards: int = 0

    def sign(self) -> int | None:
        """1 where the first text wins, -1 where it loses, 0 for a tie; None where every judgment failed."""
        count = self.forwards + self.backwards
        return _sign((self.forward + self.backward) / count) if count else None

    def changed(self) -> bool | None:
        """Whether the winner changed with the order; None unless both orders were asked."""
        if not (self.forwards and self.backwards):
            return None
        return _sign(self.forward / self.forwards) != _sign(self.backward / self.backwards)


Pair: TypeAlias = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Recorded:
    """A `recorded:FILE`, and what became of every row: given = used + dropped + not chosen."""

    path: str
    digest: str
    """sha256 of the file, first 16 hex digits."""
    form: Literal["pairs", "scores"]
    given: int
    used: int
    not_chosen: int
    """Rows of prompts beyond the number asked for (form `scores`)."""
    failures: int
    """Pairs without a verdict (form `pairs`), prompts with a candidate without a score (form `scores`)."""
    tally: Tally
    prompts: list[RecordedPrompt]
    """Form `scores`: prompts with candidates of both sources, in random order."""
    pairs: dict[Pair, Verdict] = field(repr=False)
    """Form `pairs`: verdicts by the hashes of prompt and texts."""

    def __post_init__(self) -> None:
        self.drops.check(self.given, self.used + self.not_chosen)

    @property
    def drops(self) -> Drops:
        return self.tally.drops


def read_recorded(path: str | Path, prompts: int | None = None, seed: int = 0) -> Recorded:
    """Recorded judgments of a file; its first row tells which of the two forms it has.

    Form `pairs` has columns prompt, a, b, preference. A preference is how far `a` is preferred, in [0, 1]: above 0.5
    `a` wins, below it `b`, 0.5 is a tie. `"a"`, `"b"` and `"tie"` say the same, and so does AlpacaEval's scale from 1
    (`a` wins) over 1.5 to 2 (`b` wins); a file with numbers on both sides of 1 could mean either and is refused.
    The records of a pair, in either order, are averaged.

    Form `scores` has columns prompt, source (`on` or `off`), completion, score; any number of each a prompt.
    A prompt without candidates of one source is dropped. `prompts` of them are chosen as in `read_preferences`;
    form `pairs`, which is looked up, keeps all, in memory for some 400 bytes a pair.

    A judgment or score that is empty, null or not finite is a failure and never a tie: a pair of which no judgment is
    left, or a prompt of which a score is missing, has no verdict, and counts in `failures`. Raises BadData.
    """
    _positive(prompts)
    source = str(path)
    local = _local(source)
    if local is None:
        raise BadData(f"{source}: no such file; `recorded:FILE` needs a .jsonl, .json, .csv or .parquet file")
    unit, rows = _rows(source, None)
    tally = Tally(unit)
    reader: _Pairs | _Scores | None = None
    given = 0
    for number, row in rows:
        if reader is None:
            reader = _Pairs(source, tally) if _form(source, row) == "pairs" else _Scores(source, tally, prompts, seed)
        given += 1
        try:
            reader.add(number, row)
        except _Unusable as error:
            tally.add(str(error), number)
    if reader is None:
        raise BadData(_empty(source))
    recorded = reader.result(given, _digest(local))
    _some(source, given, recorded.used, tally)
    return recorded


class PromptVotes(NamedTuple):
    """Votes of one recorded prompt, by both readings of the boundary score."""

    prompt: str
    votes_on: float
    votes_off: float
    ties: int
    top_on: float
    top_off: float


def votes_by_prompt(recorded: Recorded) -> list[PromptVotes]:
    """Votes of each prompt of a file of scores, in the order of `recorded.prompts`.

    Raises BadData for a file of pairs, which does not say who wrote its texts.
    """
    if recorded.form != "scores":
        raise BadData(
            f"{recorded.path}: pairs found (a, b, preference), which do not tell on-policy from off-policy texts; "
            "give columns prompt, source, completion, score, or add --policy and --data"
        )
    votes = []
    for item in recorded.prompts:
        on, off = item.judged.on, item.judged.off
        votes.append(PromptVotes(item.prompt, *cross_votes(on, off), *top_vote(on, off)))
    return votes


class RecordedOracle:
    """Oracle that looks its verdicts up in a file of pairs; texts are matched without the white space around them.

    Scores are ranks that agree with every recorded pair of the contest. Where there are none, for the pairs go in a
    circle, the contest has failed.
    """

    def __init__(self, recorded: Recorded):
        if recorded.form != "pairs":
            raise BadData(
                f"{recorded.path}: scores found; to look up pairs, columns prompt, a, b and preference are needed"
            )
        self.recorded = recorded

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "recorded", "sha256": self.recorded.digest}

    def check(self, contests: Iterable[Contest]) -> None:
        """Raises BadData where a pair of these contests is not recorded in either order."""
        asked = prompts = missing = lacking = 0
        examples: list[str] = []
        for contest in contests:
            prompts, before = prompts + 1, missing
            for on, off in _cross(contest):
                asked += 1
                if self._find(contest.prompt, on, off) is None:
                    missing += 1
                    if len(examples) < EXAMPLES:
                        examples.append(f"prompt {_short(contest.prompt)} with {_short(on)} and {_short(off)}")
            lacking += missing > before
        if missing:
            raise BadData(
                f"{self.recorded.path}: {missing} of {asked} pairs to compare are not in it, of {lacking} of {prompts} "
                f"prompts; the first: {'; '.join(examples)}; record them, with the same texts, or choose another oracle"
            )

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """One verdict a contest, in order. Raises BadData for a pair that `check` would have named."""
        for contest in contests:
            yield self._judge(contest)

    def _judge(self, contest: Contest) -> Judged:
        signs, compared, changed = [], 0, 0
        for on, off in _cross(contest):
            verdict = self._find(contest.prompt, on, off)
            if verdict is None:
                self.check([contest])
                raise AssertionError("a pair was missing and check did not name it")
            sign, flip = verdict.sign(), verdict.changed()
            if sign is None:
                return Judged((), (), failed="a recorded judgment of this prompt has failed")
            signs.append(sign if _order(on, off) else -sign)
            compared += flip is not None
            changed += bool(flip)
        ranks = _ranks(len(contest.on), len(contest.off), signs)
        if ranks is None:
            return Judged((), (), compared, changed, failed="the recorded preferences of this prompt go in a circle")
        return Judged(ranks[: len(contest.on)], ranks[len(contest.on) :], compared, changed)

    def _find(self, prompt: str, on: str, off: str) -> Verdict | None:
        """Verdict of the pair, from the order that `_order` gives its texts."""
        if _mark(on) == _mark(off):
            return Verdict(0.5, 1)
        return self.recorded.pairs.get(_pair(prompt, on, off))


class _Unusable(Exception):
    """Why a row cannot be used; the text is the reason that is counted, so it holds nothing of the row."""


def _preference(row: Row, explicit: bool) -> Preference:
    """The row's prompt and candidates. Raises _Unusable."""
    if ("prompt" in row) != explicit:
        raise _Unusable("`prompt` is in some rows only, unlike in the first")
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    prompt = _text(row, "prompt") if explicit else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        made = _split_text(prompt, chosen, rejected)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise _Unusable("one of `chosen` and `rejected` is text, the other a conversation")
    else:
        made = _split_turns(prompt, chosen, rejected)
    last = made.messages[-1]["content"] if made.messages else made.prompt
    for name, text in (("prompt", last), ("chosen", made.chosen), ("rejected", made.rejected)):
        if not (isinstance(text, str) and text.strip()):
            raise _Unusable(f"empty `{name}`")
    return made


def _text(row: Row, column: str) -> str | Messages:
    """Text or conversation in a column. Raises _Unusable."""
    value = _given(row, column)
    if isinstance(value, str):
        return _encodable(value, column)
    if isinstance(value, list):
        if not value:
            raise _Unusable(f"empty `{column}`")
        return tuple(_message(item, column) for item in value)
    raise _Unusable(f"`{column}` is {_kind(value)}, not text or a list of messages")


def _given(row: Row, column: str) -> Any:
    if column not in row:
        raise _Unusable(f"no `{column}`")
    if row[column] is None:
        raise _Unusable(f"`{column}` is null")
    return row[column]


def _encodable(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Unusable(f"`{column}` has half a character (a lone surrogate)") from error
    return text


def _message(item: Any, column: str) -> Message:
    """A message as {role, content}; ShareGPT's {from, value} and content in text parts are the same. Else _Unusable."""
    unusable = _Unusable(f"`{column}` is a list, but not of messages with the text of `role` and `content`")
    if not isinstance(item, dict):
        raise unusable
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if not (isinstance(role, str) and isinstance(content, str)):
        raise unusable
    role = {"human": "user", "gpt": "assistant"}.get(role, role)
    return {"role": _encodable(role, column), "content": _encodable(content, column)}


def _split_turns(prompt: str | Messages | None, chosen: Messages, rejected: Messages) -> Preference:
    """Prompt and completions of two conversations that part at their last turn. Raises _Unusable where they do not."""
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise _Unusable("the last turn of `chosen` or `rejected` is not the assistant's")
    shared = chosen[:-1]
    if shared != rejected[:-1]:
        raise _Unusable("`chosen` and `rejected` part before their last turn")
    if isinstance(prompt, tuple):
        before = shared if shared[: len(prompt)] == prompt else prompt + shared
    elif prompt is not None and not shared:
        before = ({"role": "user", "content": prompt},)
    else:  # a prompt in text beside whole conversations repeats what they hold
        before = shared
    if not before:
        raise _Unusable("no prompt before the completions")
    return Preference(before, chosen[-1]["content"], rejected[-1]["content"])


def _split_text(prompt: str | Messages | None, chosen: str, rejected: str) -> Preference:
    """Prompt and completions of two texts. Raises _Unusable where an implicit prompt cannot be told."""
    if prompt is not None:
        repeated = isinstance(prompt, str) and prompt.rstrip().endswith(ANSWER)
        if repeated and chosen.startswith(str(prompt)) and rejected.startswith(str(prompt)):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return Preference(prompt, chosen, rejected)
    if ANSWER in chosen or ANSWER in rejected:
        cut = chosen.rfind(ANSWER) + len(ANSWER)
        if ANSWER not in chosen or chosen[:cut] != rejected[: rejected.rfind(ANSWER) + len(ANSWER)]:
            raise _Unusable("`chosen` and `rejected` part before their last turn")
    else:
        cut = _shared(chosen, rejected)
        if not cut:
            raise _Unusable("no `prompt`, and no start that `chosen` and `rejected` share")
    return Preference(chosen[:cut], chosen[cut:], rejected[cut:])


def _shared(a: str, b: str) -> int:
    """Length of the start that two texts share and that ends at the end of a word, with something left of both."""
    end = len(os.path.commonprefix([a, b]))
    most = min(len(a.rstrip()), len(b.rstrip())) - 1  # some text must be left
    if a == b:
        return 0
    end = min(end, most)
    while end > 0 and _spelled(a[end - 1]) and (_spelled(a[end]) or _spelled(b[end])):
        end -= 1
    return end - (end > 0 and a[end - 1] == " ")  # TRL's: the space belongs to the completion


def _spelled(letter: str) -> bool:
    """Whether the letter is of a script that puts space between words (Thai, Chinese and others further up do not)."""
    return letter.isalnum() and letter < "\u0e00"


GroupT = TypeVar("GroupT", bound="_Group")


class _Group(Protocol):
    """What is kept of the rows of one prompt."""

    rows: int


@dataclass
class _Merged:
    first: Preference
    rows: int = 0


class _Pick(Generic[GroupT]):
    """The prompts with the smallest keyed hashes: a random choice that needs no memory of what it left out.

    A prompt that is chosen in the end has been among the chosen from its first row on, so its rows are all there.
    """

    def __init__(self, most: int | None, seed: int):
        self.most = most
        self.left_out = 0
        self._key = stream(seed, "preferences").to_bytes(8, "big")
        self._groups: dict[int, GroupT] = {}
        self._worst: list[int] = []  # negated hashes: a heap with the largest hash on top

    def group(self, prompt: str, new: Callable[[], GroupT]) -> GroupT | None:
        """The prompt's group, made where it is new; None, and the row is counted as left out, where it is not chosen."""
        digest = hashlib.blake2b(prompt.encode(), key=self._key, digest_size=16).digest()
        mark = -int.from_bytes(digest, "big")
        if mark in self._groups:
            return self._groups[mark]
        if self.most is None or len(self._worst) < self.most:
            heapq.heappush(self._worst, mark)
        elif mark < self._worst[0]:
            self.left_out += 1
            return None
        else:
            self.left_out += self._groups.pop(heapq.heapreplace(self._worst, mark)).rows
        self._groups[mark] = new()
        return self._groups[mark]

    def in_order(self) -> list[GroupT]:
        """Groups by hash: random in the data, and the same for the same prompts."""
        return [self._groups[mark] for mark in sorted(self._groups, reverse=True)]


class _Pairs:
    """Collects a recorded file of pairs."""

    def __init__(self, source: str, tally: Tally):
        self.source, self.tally = source, tally
        self.used = 0
        self.pairs: dict[Pair, Verdict] = {}
        self.sides: dict[bool, tuple[int, Any]] = {}

    def add(self, number: int, row: Row) -> None:
        prompt, a, b = _prompt(row), _completion(row, "a"), _completion(row, "b")
        share = self._share(number, row)
        first = _order(a, b)
        verdict = self.pairs.setdefault(_pair(prompt, a, b), Verdict())
        if share is None:
            raise _Unusable("failed judgment")
        self.used += 1
        if first:
            verdict.forward, verdict.forwards = verdict.forward + share, verdict.forwards + 1
        else:
            verdict.backward, verdict.backwards = verdict.backward + 1 - share, verdict.backwards + 1

    def _share(self, number: int, row: Row) -> float | None:
        """Share by which `a` is preferred; None for a failed judgment. Raises BadData for what could mean anything."""
        if "preference" not in row:
            raise _Unusable("no `preference`")
        value = row["preference"]
        where = f"{self.source}, {self.tally.unit} {number}, column 'preference'"
        if isinstance(value, str) and value.strip().lower() in ANSWERS:
            return ANSWERS[value.strip().lower()]
        share = _number(value, where, PREFERENCES)
        if share is None:
            return None
        if not 0 <= share <= 2:
            raise BadData(f"{where}: {_short(value)} found; {PREFERENCES}")
        if share != 1:
            self.sides.setdefault(share > 1, (number, value))
            if len(self.sides) == 2:
                (low, below), (high, above) = self.sides[False], self.sides[True]
                raise BadData(
                    f"{self.source}, column 'preference': {below!r} in {self.tally.unit} {low} and {above!r} in "
                    f"{self.tally.unit} {high} are of two scales; {PREFERENCES}"
                )
        return share if share <= 1 else 2 - share

    def result(self, given: int, digest: str) -> Recorded:
        failures = sum(verdict.sign() is None for verdict in self.pairs.values())
        return Recorded(
            self.source, digest, "pairs", given, self.used, 0, failures, self.tally, prompts=[], pairs=self.pairs
        )


@dataclass
class _Scored:
    prompt: str
    number: int
    rows: int = 0
    failed: bool = False
    by_source: dict[str, list[tuple[str, float]]] = field(default_factory=lambda: {"on": [], "off": []})


class _Scores:
    """Collects a recorded file of scores."""

    def __init__(self, source: str, tally: Tally, prompts: int | None, seed: int):
        self.source, self.tally = source, tally
        self.pick: _Pick[_Scored] = _Pick(prompts, seed)

    def add(self, number: int, row: Row) -> None:
        prompt, completion = _prompt(row), _completion(row, "completion")
        where = f"{self.source}, {self.tally.unit} {number}, column"
        source = _given(row, "source")
        if source not in ("on", "off"):
            raise BadData(f"{where} 'source': {_short(source)} found; write 'on' (the policy's own) or 'off' (static)")
        if "score" not in row:
            raise _Unusable("no `score`")
        score = _number(row["score"], f"{where} 'score'", "write a number, higher is better, or leave a failed one empty")
        group = self.pick.group(prompt, lambda: _Scored(prompt, number))
        if group is None:
            return
        group.rows += 1
        if score is None:
            group.failed = True
        else:
            group.by_source[source].append((completion, score))

    def result(self, given: int, digest: str) -> Recorded:
        """Sorts out prompts that cannot be voted on; a failed one is told from one that never had two sources."""
        prompts, used, failures = [], 0, 0
        for group in self.pick.in_order():
            on, off = group.by_source["on"], group.by_source["off"]
            if group.failed:
                failures += 1
                reason = "prompt with a failed score"
            elif not (on and off):
                reason = f"prompt without candidates of source '{'off' if on else 'on'}'"
            else:
                used += group.rows
                prompts.append(RecordedPrompt(group.prompt, tuple(on), tuple(off)))
                continue
            self.tally.add(reason, group.number)
            self.tally.drops[reason] += group.rows - 1
        return Recorded(
            self.source, digest, "scores", given, used, self.pick.left_out, failures, self.tally, prompts, pairs={}
        )


def _form(source: str, row: Row) -> Literal["pairs", "scores"]:
    """Form of a recorded file, by the columns of its first row. Raises BadData for neither and for both."""
    missing = {form: [name for name in columns if name not in row] for form, columns in RECORDED.items()}
    if not missing["pairs"] and not missing["scores"]:
        raise BadData(
            f"{source}: columns of both recorded forms found; keep either prompt, a, b, preference or prompt, source, "
            "completion, score"
        )
    if not missing["pairs"]:
        return "pairs"
    if not missing["scores"]:
        return "scores"
    near = min(missing.values(), key=len)
    raise BadData(
        f"{source}: column {_list(near)} missing; found: {_list(row)}; a recorded file has columns prompt, a, b, "
        "preference or prompt, source, completion, score"
    )


def _prompt(row: Row) -> str:
    """Prompt of a recorded row as text. Raises _Unusable."""
    text = Preference(_text(row, "prompt"), "", "").prompt_text
    if not text.strip():
        raise _Unusable("empty `prompt`")
    return text


def _completion(row: Row, column: str) -> str:
    """Completion of a recorded row; it may be empty, as policies' are. Raises _Unusable."""
    value = _text(row, column)
    if isinstance(value, str):
        return value
    if len(value) > 1:
        raise _Unusable(f"`{column}` has more than one turn")
    return value[0]["content"]


def _number(value: Any, where: str, fix: str) -> float | None:
    """`value` as a finite number; None where it is empty, null or not finite. Raises BadData for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise BadData(f"{where}: {_short(value)} found; {fix}") from None
    return number if math.isfinite(number) else None


def _sign(share: float) -> int:
    """1 above a half, -1 below; means of recorded shares that differ from a half by rounding alone are ties."""
    return 0 if math.isclose(share, 0.5, abs_tol=1e-9) else (1 if share > 0.5 else -1)


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _order(a: str, b: str) -> bool:
    """Whether the pair is kept in this order of its texts."""
    return _mark(a) <= _mark(b)


def _pair(prompt: str, a: str, b: str) -> Pair:
    low, high = sorted((_mark(a), _mark(b)))
    return _mark(prompt), low, high


def _cross(contest: Contest) -> Iterator[tuple[str, str]]:
    return ((on, off) for on in contest.on for off in contest.off)


def _ranks(on: int, off: int, signs: Sequence[int]) -> tuple[float, ...] | None:
    """Scores (0 is best, then -1, ...) of `on + off` candidates that agree with every sign of on i against off j.

    None where there are none. Tied candidates get equal scores: they are one node of a graph of who beats whom, whose
    nodes are taken away from the top, all unbeaten ones at a time.
    """
    node = list(range(on + off))
    edges = [(i, on + j, signs[i * off + j]) for i in range(on) for j in range(off)]
    for a, b, sign in edges:
        if sign == 0:
            old, new = node[a], node[b]
            node = [new if name == old else name for name in node]
    beats = {(node[a], node[b]) if sign > 0 else (node[b], node[a]) for a, b, sign in edges if sign}
    left, depth = set(node), {}
    for level in range(len(left)):
        top = left - {loser for winner, loser in beats if winner in left}
        depth.update(dict.fromkeys(top, level))
        left -= top
    return None if left else tuple(-float(depth[name]) for name in node)


def _positive(prompts: int | None) -> None:
    if prompts is not None and prompts < 1:
        raise BadData(f"prompts {prompts!r}: not a positive number; leave it out to use all")


def _present(source: str, row: Row, column: str) -> None:
    if column not in row:
        raise BadData(f"{source}: column {column!r} missing; found: {_list(row)}; {NEEDED}")


def _some(source: str, given: int, used: int, tally: Tally) -> None:
    """Raises BadData where no row is left."""
    if not given:
        raise BadData(_empty(source))
    if not used:
        raise BadData(f"{source}: none of {given} {tally.unit}s can be used; {tally}; mend the file or choose another")


def _empty(source: str) -> str:
    return f"{source}: no rows found; give a file with at least one"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    names = {"bool": "a truth value", "int": "a number", "float": "a number", "dict": "an object", "bytes": "bytes"}
    return names.get(type(value).__name__, type(value).__name__)


def _list(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return (", ".join(name[:40] for name in names[:12]) + ", ..." * (len(names) > 12)) or "none"


def _local(source: str) -> Path | None:
    """The file that `source` names; None where it can only be a hub data set. Raises BadData for what is neither."""
    if not source or "\0" in source:
        raise BadData(f"data {source!r}: no name; give a file or a hub data set `name[:config][@revision]`")
    path = Path(source).expanduser()
    try:
        exists, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise BadData(f"{_short(source)}: not a file name ({error.strerror})") from error
    if folder:
        raise BadData(f"{source}: a folder found; name a .jsonl, .json, .csv or .parquet file in it")
    known = _reader(path) is not None
    if exists and known:
        return path
    if exists or (not known and path.suffix.lower() in NOT_DATA):
        raise BadData(
            f"{source}: unknown ending {path.suffix!r}; known: .jsonl, .json, .csv (also with .gz), .parquet"
        )
    if known:
        raise BadData(f"{source}: no such file; check the path, relative to {'the' if path.is_absolute() else 'this'} folder")
    return None


def _reader(path: Path) -> Callable[[Path, str], Numbered] | None:
    """Reader by the ending of the name."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet_rows
    name = name.removesuffix(".gz")
    return next((READERS[ending] for ending in READERS if name.endswith(ending)), None)


def _rows(source: str, split: str | None) -> tuple[str, Numbered]:
    """(unit of the numbers, numbered rows) of a file or hub data set."""
    path = _local(source)
    if path is None:
        return "row", _hub_rows(source, split)
    if split is not None:
        raise BadData(f"{source}: a file has no split {split!r}; splits are for hub data sets, leave it out")
    reader = _reader(path)
    assert reader is not None
    return ("line" if reader is _jsonl_rows else "row"), reader(path, source)


@contextmanager
def _opened(path: Path, source: str) -> Iterator[IO[bytes]]:
    """The file in bytes, decompressed; what goes wrong while it is read becomes BadData."""
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except EOFError as error:
        raise BadData(f"{source}: the gzip file ends early; copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{source}: not a sound gzip file ({error}); copy it again, or drop .gz from its name") from error
    except OSError as error:
        raise BadData(f"{source}: cannot be read ({error.strerror or error}); check the file") from error


def _digest(path: Path) -> str:
    with _opened(path.with_name(path.name), str(path)) as file:
        digest = hashlib.sha256()
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()[:16]


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, without a byte order mark."""
    with _opened(path, source) as file:
        number = 0
        while raw := file.readline(LONGEST):
            number += 1
            if len(raw) == LONGEST and not raw.endswith(b"\n"):
                raise BadData(f"{source}, line {number}: longer than {LONGEST >> 20} MiB; one row a line is expected")
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                raise BadData(
                    f"{source}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error


def _jsonl_rows(path: Path, source: str) -> Numbered:
    for number, line in _lines(path, source):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where}: not JSON ({_why(error)}); one object a line is expected") from error
        yield number, _object(row, where)


def _json_rows(path: Path, source: str) -> Numbered:
    """Objects of a list, or one after the other, parsed as they are read."""
    decoder = json.JSONDecoder()
    with _Text(path, source) as text:
        first = text.skip()
        if not first:
            return
        if first not in "[{":
            raise BadData(f"{source}: starts with {first!r}; a list of objects is expected")
        if listed := first == "[":
            text.at += 1
        number = 0
        while (sign := text.skip()) and not (listed and sign == "]"):
            if listed and number:
                if sign != ",":
                    raise BadData(f"{source}, after row {number}: {sign!r} found; ',' or ']' is expected")
                text.at += 1
                text.skip()
            number += 1
            yield number, _object(text.value(decoder, number), f"{source}, row {number}")
        if listed:
            if not sign:
                raise BadData(f"{source}: ends early, after row {number}; write or copy it again")
            text.at += 1
            if text.skip():
                raise BadData(f"{source}: more text after the end of the list; one list of objects is expected")


class _Text:
    """A JSON text that is read piece by piece; `at` is the place of the next character in what is held."""

    def __init__(self, path: Path, source: str):
        self.source, self.held, self.at = source, "", 0
        self._opened = _opened(path, source)
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._ended = False

    def __enter__(self) -> "_Text":
        self._file = self._opened.__enter__()
        self.more()
        if self.held.startswith("\ufeff"):
            self.at = 1
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        return self._opened.__exit__(*raised)

    def more(self) -> bool:
        """Whether there was more; what is held doubles, so that a long value is not parsed again too often."""
        if self._ended:
            return False
        self.held, self.at = self.held[self.at :], 0
        raw = self._file.read(max(CHUNK, len(self.held)))
        self._ended = not raw
        try:
            self.held += self._decode.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise BadData(f"{self.source}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        return True

    def skip(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in " \t\n\r":
                self.at += 1
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def value(self, decoder: json.JSONDecoder, number: int) -> Any:
        """The value that starts here. Raises BadData."""
        where = f"{self.source}, row {number}"
        if self.at < len(self.held) and self.held[self.at] != "{":  # a number may go on in the next piece
            raise BadData(f"{where}: starts with {self.held[self.at]!r}; an object is expected")
        while True:
            try:
                value, self.at = decoder.raw_decode(self.held, self.at)
                return value
            except json.JSONDecodeError as error:
                whole = len(self.held) - error.pos > 16 and not error.msg.startswith("Unterminated")
                if len(self.held) > LONGEST:
                    raise BadData(f"{where}: longer than {LONGEST >> 20} MiB; a list of objects is expected") from error
                if whole or not self.more():
                    raise BadData(f"{where}: not JSON ({_why(error)}); a list of objects is expected") from error
            except (ValueError, RecursionError) as error:
                raise BadData(f"{where}: not JSON ({_why(error)}); a list of objects is expected") from error


def _csv_rows(path: Path, source: str) -> Numbered:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # the default refuses texts above 128 KiB
    reader = csv.reader((line for _, line in _lines(path, source)), strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                repeated = [name for name in header if header.count(name) > 1]
                if repeated:
                    raise BadData(f"{source}: column {repeated[0]!r} found twice; give each column its own name")
                continue
            number += 1
            if len(cells) > len(header):
                yield number, dict.fromkeys(header, _TOO_MANY)
            else:
                yield number, {
                    name: _cell(cell, f"{source}, row {number}, column {name!r}")
                    for name, cell in zip(header, cells, strict=False)
                }
    except csv.Error as error:
        raise BadData(f"{source}, line {reader.line_num}: not CSV ({error}); quote text by \" and double its quotes") from error


class _TooMany:
    """In place of the cells of a CSV row that has more of them than the header."""


_TOO_MANY = _TooMany()


def _cell(text: str, where: str) -> Any:
    """A CSV cell: a conversation where it is one in JSON, else its text."""
    if not text.startswith("["):
        return text
    if PYTHON_TEXT.match(text):
        raise BadData(f"{where}: a list in Python's spelling found; write it as JSON, or save as .jsonl or .parquet")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    turns = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return value if turns and all({"role", "content"} <= {*item} or {"from", "value"} <= {*item} for item in value) else text


def _parquet_rows(path: Path, source: str) -> Numbered:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    wanted = {"prompt", "chosen", "rejected", *RECORDED["pairs"], *RECORDED["scores"]}
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in wanted]
            others = {name: None for name in names if name not in wanted}  # not read, but there
            for batch in file.iter_batches(batch_size=64, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row | others
    except UnicodeDecodeError as error:
        raise BadData(f"{source}, after row {number}: not UTF-8 ({error.reason}); write the file again") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        at = f", after row {number}" if number else ""
        raise BadData(f"{source}{at}: not a sound parquet file ({_why(error)}); write or copy it again") from error


def _hub_rows(source: str, split: str | None) -> Numbered:
    """Rows of a hub data set, streamed. It never runs code of the data set: `trust_remote_code` is not set."""
    match = HUB.fullmatch(source)
    if match is None:
        raise BadData(f"{source!r}: neither a file nor a hub data set; the latter is `name[:config][@revision]`")
    from datasets import load_dataset

    number = 0
    try:
        data = load_dataset(match["name"], match["config"], revision=match["revision"], split=split, streaming=True)
        if isinstance(data, dict):
            if len(data) != 1:
                raise BadData(f"{source}: splits {_list(data)} found; name one of them, such as --split {next(iter(data))}")
            (data,) = data.values()
        for row in data:
            number += 1
            yield number, _object(row, f"{source}, row {number}")
    except BadData:
        raise
    except Exception as error:  # the hub's client has no common base for what it raises; nothing of ours runs in here
        at = f", after row {number}" if number else ""
        raise BadData(
            f"{source}{at}: no such file, and cannot be read from the hub ({_why(error)}); check name, config, revision "
            "and split, the network, and your access to it"
        ) from error


READERS: dict[str, Callable[[Path, str], Numbered]] = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise BadData(f"{where}: {_kind(row)} found; an object with a value for each column is expected")
    return row


def _why(error: BaseException) -> str:
    """First line of an error, shortened."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
