"""Splits a row's texts or conversations into a prompt and two completions."""

import re
from itertools import takewhile
from typing import NamedTuple

from stagealign.data.markup import (
    ANSWER_LABEL,
    FIRST_LABEL,
    answer_start,
    check_unmarked,
    is_plain,
    labelled,
    marked_turns,
    turns_before,
    without_ends,
)
from stagealign.data.sides import Sides
from stagealign.data.texts import Message, Messages, Unusable, conversation, prompt_text

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
WORDS, CHARACTERS = 3, 20
"""A prompt of so many words or characters is not the start of both answers by chance."""
REPEATED = "the prompt stood at the start of both answers and was taken off"
LABELLED = "text in turns with labels (`User:`, `Assistant:`) was read as turns"
SHARED_START = "no column of the prompt: the start that both texts share is the prompt"
PARTED = "`chosen` and `rejected` part before their last turn"


class Split(NamedTuple):
    """A prompt with its two completions."""

    prompt: str | Messages
    chosen: str
    rejected: str


def split(sides: Sides, changed: list[str], repeats: bool = False) -> Split:
    """Prompt and completions of a row. Raises Unusable.

    What was taken off or read otherwise than it stands goes into `changed`. `repeats`: the rows of this file start
    their answers with the prompt, so a short one is taken off as well.
    """
    given, first, second = sides.prompt, sides.first, sides.second
    if is_plain(given) and is_plain(first) and is_plain(second):
        return _split_text(given, first, second, changed, repeats)
    chosen, rejected = conversation(first, "chosen"), conversation(second, "rejected")
    prompt = None if given is None else conversation(given, "prompt")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("one of `chosen` and `rejected` is text, the other a conversation")
    prompt = None if prompt is None else _unmarked(prompt, "prompt", changed)
    chosen, rejected = _unmarked(chosen, "chosen", changed), _unmarked(rejected, "rejected", changed)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_text(prompt, chosen, rejected, changed, repeats)
    if isinstance(prompt, str):
        prompt = _labelled_turns(prompt, changed) or prompt
    return _split_turns(prompt, _turned(chosen), _turned(rejected))


def _turned(answer: str | Messages) -> Messages:
    return ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer


def _unmarked(value: str | Messages, column: str, changed: list[str]) -> str | Messages:
    """The value without template markup: turns for a marked text. Raises Unusable for markup inside of a text."""
    if not isinstance(value, str):
        for message in value:
            check_unmarked(message["content"], column)
        return value
    marked = marked_turns(value, column)
    if marked:
        changed.append(f"template markup ({marked[0]}) was read as turns")
        return marked[1]
    bare = value if column == "prompt" else without_ends(value)
    check_unmarked(bare, column)
    if bare != value:
        changed.append("end tokens at the end of an answer were taken off")
    return bare


def _labelled_turns(prompt: str, changed: list[str]) -> Messages | None:
    """Messages of a prompt in turns of `User:` that ends with `Assistant:`; None for another text."""
    turns = labelled(prompt)
    if not turns or turns[-1].role != "assistant" or prompt[turns[-1].end :].strip():
        return None
    changed.append(LABELLED)
    return turns_before(prompt, turns)


def _split_turns(prompt: str | Messages | None, chosen: Messages, rejected: Messages) -> Split:
    """Prompt and completions of two conversations that differ in their last turn only. Raises Unusable otherwise."""
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise Unusable("the last turn of `chosen` or `rejected` is not the assistant's")
    shared = chosen[:-1]
    if shared != rejected[:-1]:
        raise Unusable(PARTED)
    if prompt is None:
        before = shared
    elif isinstance(prompt, str):
        before = _text_with_turns(prompt, shared)
    else:
        before = _turns_with_turns(prompt, shared, chosen[-1])
    if not before:
        raise Unusable("no prompt before the completions")
    return Split(before, chosen[-1]["content"], rejected[-1]["content"])


def _text_with_turns(prompt: str, shared: Messages) -> Messages:
    """The turns before the completions, for a prompt in text beside the turns of both. Raises Unusable."""
    if not shared:
        return ({"role": "user", "content": prompt},)
    if shared[0]["content"] == prompt or shared[-1]["content"] == prompt:
        return shared
    asked = "".join(prompt.split())
    said = ["".join(message["content"].split()) for message in shared]
    if any(asked in text for text in said) or all(text in asked for text in said):
        return shared
    raise Unusable("`prompt` is not among the turns of `chosen` and `rejected`")


def _turns_with_turns(prompt: Messages, shared: Messages, answer: Message) -> Messages:
    """The turns before the completions, for a prompt in turns, each turn once. Raises Unusable."""
    if len(prompt) > 1 and _same(prompt[-1], answer):
        prompt = prompt[:-1]  # the whole conversation with its chosen answer
    if not shared:
        return prompt
    if _holds(shared, prompt):
        return shared
    for count in range(min(len(prompt), len(shared)), 0, -1):
        if all(map(_same, prompt[-count:], shared)):
            return prompt + shared[count:]
    fits = {"system": "user", "user": "assistant", "assistant": "user"}
    twice = any(_same(turn, other) for turn in shared for other in prompt)
    if not twice and shared[0]["role"] == fits[prompt[-1]["role"]]:
        return prompt + shared
    raise Unusable("the turns of `prompt` and those of `chosen` do not continue each other")


def _same(a: Message, b: Message) -> bool:
    return a["role"] == b["role"] and a["content"].strip() == b["content"].strip()


def _holds(turns: Messages, part: Messages) -> bool:
    """True if `part` stands in `turns`, one turn after the other."""
    return any(all(map(_same, turns[at : at + len(part)], part)) for at in range(len(turns) - len(part) + 1))


def _split_text(prompt: str | Messages | None, chosen: str, rejected: str, changed: list[str], repeats: bool) -> Split:
    """Prompt and completions of two texts. Raises Unusable if an implicit prompt cannot be found."""
    if prompt is None:
        return _implicit(chosen, rejected, changed)
    text = prompt if isinstance(prompt, str) else prompt_text(prompt[-1:])
    cuts = repeated(text, chosen, rejected, repeats)
    if cuts:
        changed.append(REPEATED)
        chosen, rejected = chosen[cuts[0] :], rejected[cuts[1] :]
    if not isinstance(prompt, str):
        return Split(prompt, chosen, rejected)
    if not FIRST_LABEL.match(prompt):
        return Split(prompt, chosen, rejected)
    of_hh = bool(TURN.match(prompt)) and prompt.rstrip().endswith(ANSWER)
    answered = ANSWER_LABEL.match(chosen) and ANSWER_LABEL.match(rejected)
    turns = None if of_hh else _labelled_turns(prompt, changed)
    if answered and not (of_hh or turns):
        turns = _labelled_turns(f"{prompt}{ANSWER}", changed)  # the label stands before the answers instead
    if answered and (of_hh or turns):
        changed.append("labels before the answers were taken off")
        chosen, rejected = ANSWER_LABEL.sub("", chosen, count=1), ANSWER_LABEL.sub("", rejected, count=1)
    return Split(turns, chosen.strip(), rejected.strip()) if turns else Split(prompt, chosen, rejected)


def repeated(prompt: str, chosen: str, rejected: str, short: bool) -> tuple[int, int] | None:
    """Where both answers go on after the prompt that they repeat; None if they do not. `short`: for any prompt."""
    if prompt.lstrip()[:4] not in chosen[:40]:
        return None
    bare = prompt.strip()
    if not bare or not (short or len(bare) >= CHARACTERS or len(bare.split()) >= WORDS):
        return None
    cuts = []
    for answer in (chosen, rejected):
        start = len(answer) - len(answer.lstrip())
        end = start + len(bare)
        rest = answer[end:]
        if not answer.startswith(bare, start) or (rest and _spelled(bare[-1]) and _spelled(rest[0])):
            return None
        cuts.append(end)
    return cuts[0], cuts[1]


def _implicit(chosen: str, rejected: str, changed: list[str]) -> Split:
    """Prompt and completions of two texts that start alike. Raises Unusable."""
    ours, theirs = labelled(chosen), labelled(rejected)
    if (ANSWER in chosen or ANSWER in rejected) and (TURN.match(chosen) or not ours):
        cut = chosen.rfind(ANSWER) + len(ANSWER)
        if ANSWER not in chosen or chosen[:cut] != rejected[: rejected.rfind(ANSWER) + len(ANSWER)]:
            raise Unusable(PARTED)
        return Split(chosen[:cut], chosen[cut:], rejected[cut:])
    if ours and theirs:
        turns = [turn for turn in ours if turn in theirs and chosen[: turn.end] == rejected[: turn.end]]
        answers = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
        last = answers[-1] if answers else 0
        if not answers or any(turn.role == "user" for turn in [*ours[last + 1 :], *theirs[last + 1 :]]):
            raise Unusable(PARTED)
        changed.append(LABELLED)
        cut = turns[last].end
        return Split(turns_before(chosen, turns[: last + 1]), chosen[cut:].strip(), rejected[cut:].strip())
    shared = _alike(chosen, rejected)
    cut = answer_start(chosen, shared) or _shared(chosen, rejected, shared)
    if not cut:
        raise Unusable("no `prompt`, and no start that `chosen` and `rejected` share")
    changed.append(SHARED_START)
    return Split(chosen[:cut], chosen[cut:], rejected[cut:])


def _alike(a: str, b: str) -> int:
    """Number of characters with which both texts start."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False)))


def _shared(a: str, b: str, alike: int) -> int:
    """Length of the start that two texts share, cut at the end of a word so that both completions are not empty."""
    if a == b:
        return 0
    left = min(len(a.rstrip()), len(b.rstrip())) - 1
    end = max(0, min(alike, left))
    while end > 0 and _spelled(a[end - 1]) and (_spelled(a[end]) or _spelled(b[end])):
        end -= 1
    return end - (end > 0 and a[end - 1] == " ")  # as in TRL, the space belongs to the completion


def _spelled(letter: str) -> bool:
    """True for a letter of a script with spaces between words; Thai, Chinese and other higher code points have none."""
    return letter.isalnum() and letter < "\u0e00"
