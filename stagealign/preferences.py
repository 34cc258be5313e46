"""Preference data and recorded judgments, from a file or the hub: checked row by row, without holding the rows.

Both choose their prompts by a keyed hash of the prompt's text: the order is random by seed, does not depend on the
order or the format of the file, and the first prompts of a larger choice are those of a smaller one.
"""

import hashlib
import heapq
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from stagealign.boundary import cross_votes, top_vote
from stagealign.errors import BadData
from stagealign.judged import Contest, Judged
from stagealign.records import Drops, prompt_hash
from stagealign.spec import stream
from stagealign.tables import EXAMPLES, MISFIT, Row, Tally, digest_of, kind_of, listed, local_file, numbered_rows, short

Message: TypeAlias = Mapping[str, str]
Messages: TypeAlias = tuple[Message, ...]

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
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
    unit, rows = numbered_rows(source, ("prompt", "chosen", "rejected"), split)
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
        group = pick.group(preference.prompt_text, _Merged(preference))
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


@dataclass(slots=True)
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
    local = local_file(source)
    if local is None:
        raise BadData(f"{source}: no such file; `recorded:FILE` needs a .jsonl, .json, .csv or .parquet file")
    unit, rows = numbered_rows(source, {*RECORDED["pairs"], *RECORDED["scores"]})
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
    recorded = reader.result(given, digest_of(local))
    _some(source, given - recorded.not_chosen, recorded.used, tally)
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
                        examples.append(f"prompt {short(contest.prompt)} with {short(on)} and {short(off)}")
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
    last = made.messages[-1]["content"] if made.messages else made.prompt_text
    for name, text in (("prompt", last), ("chosen", made.chosen), ("rejected", made.rejected)):
        if not text.strip():
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
    raise _Unusable(f"`{column}` is {kind_of(value)}, not text or a list of messages")


def _given(row: Row, column: str) -> Any:
    if column not in row:
        raise _Unusable(f"no `{column}`")
    if row[column] is MISFIT:
        raise _Unusable("not as many cells as the header")
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
        turns = isinstance(prompt, str) and prompt.rstrip().endswith(ANSWER)
        if turns and chosen.startswith(str(prompt)) and rejected.startswith(str(prompt)):
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
    if a == b:
        return 0
    left = min(len(a.rstrip()), len(b.rstrip())) - 1
    end = max(0, min(sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False))), left))
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

    def group(self, prompt: str, new: GroupT) -> GroupT | None:
        """The prompt's group, `new` where it has none; None, and the row counts as left out, where it is not chosen."""
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
        self._groups[mark] = new
        return new

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
            raise BadData(f"{where}: {short(value)} found; {PREFERENCES}")
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
            raise BadData(f"{where} 'source': {short(source)} found; write 'on' (the policy's own) or 'off' (static)")
        if "score" not in row:
            raise _Unusable("no `score`")
        score = _number(
            row["score"], f"{where} 'score'", "write a number, higher is better, or leave a failed one empty"
        )
        group = self.pick.group(prompt, _Scored(prompt, number))
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
        f"{source}: column {listed(near)} missing; found: {listed(row)}; a recorded file has columns prompt, a, b, "
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
        raise BadData(f"{where}: {short(value)} found; {fix}") from None
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
        raise BadData(f"{source}: column {column!r} missing; found: {listed(row)}; {NEEDED}")


def _some(source: str, given: int, used: int, tally: Tally) -> None:
    """Raises BadData where no row is left."""
    if not given:
        raise BadData(_empty(source))
    if not used:
        raise BadData(f"{source}: none of {given} {tally.unit}s can be used; {tally}; mend the file or choose another")


def _empty(source: str) -> str:
    return f"{source}: no rows found; give a file with at least one"
