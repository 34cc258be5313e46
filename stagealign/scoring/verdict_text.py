"""The verdict in a judge's answer: by the probabilities of two letters, or by its text, read strictly.

A text names one of two letters, says `tie`, or is no verdict. One that names both, negates, contrasts or asks is no
verdict, unless its last sentence is a marked answer (`Answer: B`, `[[B]]`) or a JSON field says it. Nothing is guessed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp, isfinite
from typing import Any, Literal, TypeAlias

Verdict: TypeAlias = Literal["first", "second", "tie"]
MASS = 0.5
"""Least probability of the two letters together for which they are the judge's answer."""
MOST_BRACES = 100
"""Braces of a text at which a JSON answer is looked for."""
CERTAIN = 1.01
"""Largest sum of probabilities that is accepted, as servers round."""
KEYS = (
    "winner", "choice", "answer", "final_answer", "verdict", "final_verdict", "preference", "preferred", "better",
    "best", "better_response", "preferred_response", "best_response", "selected", "selection", "decision", "judgment",
    "judgement", "result",
)  # fmt: skip
"""Fields of a JSON answer that hold its verdict, in lower case."""
_NOUN = r"(?i:response|answer|option|candidate|assistant|output|completion|choice|model|text|reply|version|solution)"
_SURE = (
    r"(?i:clearly|overall|definitely|slightly|much|far|somewhat|significantly|marginally|simply|just|still|a bit|the)"
)
_BETTER = r"(?i:better|best|stronger|superior|preferred|preferable|winner|more (?:helpful|correct|accurate))"
_MARK = (
    r"(?i:(?:so|therefore|thus|hence|overall|in conclusion|conclusion|in summary)[,:]? )?(?i:my |the )?"
    r"(?i:(?:final|best|better|preferred|correct|overall|stronger|winning) )*"
    rf"(?:{_NOUN}|(?i:verdict|winner|decision|judge?ment|preference|pick))(?: is:?|:| ?=| [-\u2013\u2014]) ?"
)
"""Words before a marked answer, such as `My final answer is`."""
_AGAINST = re.compile(
    r"\b(?:not|never|neither|nor|no|none|cannot|without|worse|worst|weaker|inferior|loses?|lost|fails?|failed|rejected|"
    r"wrong|incorrect|bad|unclear|unsure|hardly|barely|less)\b|n't\b",
    re.IGNORECASE,
)
"""Words with which a sentence may say the opposite of its letter."""
_CONTRAST = re.compile(
    r"\b(?:but|however|although|though|except|yet|instead|unless|actually|wait|if|whether|nevertheless|otherwise|rather|"
    r"versus|vs|or|on second thought|equal|equally|ties?|tied|draw|both|might|may|could|maybe|perhaps)\b",
    re.IGNORECASE,
)
"""Words with which a sentence may take its verdict back or leave it open."""
_BECAUSE = re.compile(r" (?:because|since|as|due to|given)\b", re.IGNORECASE)
_PAUSE = re.compile(r" ?[,;] ?")
"""Ends of a clause. A colon or a dash is none, as `Response A: ...` mostly begins a description of it."""
_TIE = re.compile(
    r"(?:(?:it is|it's|this is|i call it|i'd call it) )?(?:an? )?(?:overall )?(?:tie|draw)|(?:they|both)(?: are|'re)? "
    r"(?:equal|equally good|tied)|equal|tied",
    re.IGNORECASE,
)
_QUOTES = str.maketrans(
    dict.fromkeys('"`*_#~\u2018\u201b\u201a“”„‟«»‹›「」『』《》〈〉【】', " ") | {"：": ":", "。": ".", "．": "."}
)
"""Quotes of several languages and marks of markdown, which say nothing."""
_SPECIAL = re.compile(r"<\|[\w ]{1,30}\|>|</?s>")
"""End tokens that a server leaves in a text."""
_BRACKETED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*(\w+)\s*\}?\s*\}|\[\[\s*(\w+)\s*\]\]")


@dataclass(frozen=True)
class Letters:
    """The two letters that a judge was asked to choose from."""

    first: str
    second: str
    same_case: bool = True
    """Whether a lower-case letter is the same; False where the letters differ in case alone, as AlpacaEval's."""

    def named(self, letter: str) -> Verdict | None:
        """The side of a letter; None for another text."""
        if self.same_case:
            letter = letter.upper()
        return "first" if letter == self.first else "second" if letter == self.second else None


AB = Letters("A", "B")
MM = Letters("m", "M", same_case=False)


def letter_masses(top: object, letters: Letters) -> tuple[float, float] | None:
    """Probabilities of the first and the second letter in a server's `top_logprobs` of one token.

    A token counts as a letter if nothing but white space and marks stands around it. None if it holds no finite
    log-probability of either, or more probability than there is.
    """
    if not isinstance(top, Sequence):
        return None
    masses = {"first": 0.0, "second": 0.0}
    found = False
    for entry in top:
        if not isinstance(entry, Mapping):
            return None
        token, logprob = entry.get("token"), entry.get("logprob")
        if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
            return None
        side = letters.named(re.sub(r"\W", "", token))
        if side in ("first", "second") and isfinite(logprob) and logprob < 1:
            masses[side] += exp(logprob)
            found = True
    if not found or sum(masses.values()) > CERTAIN:
        return None
    return masses["first"], masses["second"]


def without_thinking(text: str) -> str | None:
    """A judge's text after its reasoning in `<think>` tags; None if the reasoning does not end."""
    after = re.split(r"</(?:think|thinking|reasoning)>", text, flags=re.IGNORECASE)[-1]
    return None if re.search(r"<(?:think|thinking|reasoning)>", after, re.IGNORECASE) else after


def verdict_in(text: str, letters: Letters, cut: bool = False) -> Verdict | None:
    """The verdict of a judge's text; None if it has none, or none that is beyond doubt.

    A text that was `cut` has a verdict only in an answer that stands for itself: a letter alone, a marked answer, JSON.
    """
    answer = without_thinking(text)
    if answer is None:
        return None
    fields, rest = _json_in(answer.strip())
    if fields is not None:
        said = _in_fields(fields, letters)
        other = _in_text(rest, letters, cut) if rest.strip() else said
        return said if said == other or not _mentions(_plain(rest), letters) else None
    return _in_text(answer, letters, cut)


def _in_text(text: str, letters: Letters, cut: bool) -> Verdict | None:
    """Verdict of a text without JSON."""
    lines = [line for line in map(_plain, _unboxed(text).splitlines()) if line]
    if not lines:
        return None
    whole = _alone(" ".join(lines), letters)
    if whole is not None:
        return whole
    sentences = [sentence for line in lines for sentence in re.split(r"(?<=[.!?]) ", line)]
    marked = [verdict for sentence in sentences if (verdict := _marked(sentence, letters)) is not None]
    if marked and _marked(sentences[-1], letters) is not None:
        return marked[-1] if len(set(marked)) == 1 else None
    return _claimed(sentences, letters, cut)


def _claimed(sentences: Sequence[str], letters: Letters, cut: bool) -> Verdict | None:
    """The verdict that sentences claim, if they name one letter only and none of them may take it back."""
    named = _mentions(" ".join(sentences), letters)
    if len(named) != 1:
        return None
    claims = 0
    for sentence in sentences:
        own = _mentions(sentence, letters)
        if not own:
            if _AGAINST.match(sentence) or _CONTRAST.match(sentence) or _TIE.fullmatch(sentence.strip(" .!")):
                return None
            continue
        head, *_ = _BECAUSE.split(sentence, maxsplit=1)
        if sentence.endswith("?") or _CONTRAST.search(sentence) or _AGAINST.search(head):
            return None
        for claim in {head, _PAUSE.split(head, maxsplit=1)[0]}:
            if _is_claim(claim, letters):
                claims += not cut
                break
    (verdict,) = named
    return verdict if claims else None


def _is_claim(text: str, letters: Letters) -> bool:
    """True for a text that names a letter as its verdict, and says no more."""
    if _alone(text, letters) is not None or _marked(text, letters) is not None:
        return True
    one, other = _one(letters), rf"(?i: than the other(?: one)?(?: {_NOUN})?)?"
    forms = (
        rf"(?:{_SURE}[, ]+)+{one}",
        rf"{one}(?i: is|'s| seems| looks)(?: {_SURE})* {_BETTER}(?i: one)?(?: {_NOUN})?(?i: overall)?{other}",
        rf"{one}(?: {_SURE})* (?i:wins?)",
        rf"(?i:i|we)(?i: would|'d)?(?: {_SURE})* (?i:prefer|choose|pick|select|vote for|go with|favou?r) {one}",
    )
    return any(re.fullmatch(form, text.strip(" .!")) for form in forms)


def _alone(text: str, letters: Letters) -> Verdict | None:
    """Verdict of a text that is a letter, with or without a noun before it, or a tie, and nothing else."""
    bare = text.strip(" .,!:;()[]{}<>-\x02\x03")
    if _TIE.fullmatch(bare):
        return "tie"
    found = re.fullmatch(_one(letters), bare)
    return letters.named(found["letter"]) if found else None


def _marked(line: str, letters: Letters) -> Verdict | None:
    """Verdict of a sentence that is a marked answer (`Final answer: B.`); None without one.

    A letter in double brackets or in a box is marked by them.
    """
    bare = line.strip(" .!")
    boxed = re.fullmatch(rf"(?:.*[:,] ?|{_MARK})?(?P<rest>\x02\w+\x03)", bare)
    mark = boxed or re.fullmatch(rf"{_MARK}(?P<rest>[^.!?]*)", bare)
    return _alone(mark["rest"], letters) if mark else None


def _mentions(text: str, letters: Letters) -> set[Verdict]:
    """The sides that a text names: a letter that stands alone as it was written in the question, or after a noun."""
    loose = rf"{_NOUN}s?[ (\[{{<:\x02]*(\w)(?=$|[ )\]}}>\x03]*(?:[.,;:!?]|$)|(?i: is\b| wins?\b|'s\b))"
    strict = rf"(?<![\w'])([{letters.first}{letters.second}])(?![\w'])"
    found = [letters.named(letter) for form in (loose, strict) for letter in re.findall(form, text)]
    return {verdict for verdict in found if verdict is not None}


def _one(letters: Letters) -> str:
    """Pattern of one letter with an optional noun before it."""
    both = letters.first + letters.second
    known = both + both.lower() if letters.same_case else both
    return rf"(?i:the )?(?:(?i:better |best |preferred |winning )?{_NOUN}[ :]*)?[(\[<{{]*(?P<letter>[{known}])[)\]>}}]*"


def _unboxed(text: str) -> str:
    """The text with `[[B]]` and `\\boxed{B}` as letters between control characters, which no text holds afterwards."""
    return _BRACKETED.sub(lambda found: f"\x02{found[1] or found[2]}\x03", re.sub(r"[\x01-\x03]", "", text))


def _plain(line: str) -> str:
    """A line without quotes and marks of markdown, in single spaces; apostrophes inside words stay."""
    kept = re.sub(r"(?<=\w)['\u2019](?=\w)", "\x01", _SPECIAL.sub(" ", line))
    return " ".join(re.sub(r"['\u2019]", " ", kept.translate(_QUOTES)).replace("\x01", "'").split())


def _json_in(text: str) -> tuple[Mapping[str, Any] | None, str]:
    """(the one JSON object in a text, what stands around it); None without one."""
    starts = (place for place, sign in enumerate(text) if sign == "{")
    for start in islice(starts, MOST_BRACES):
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value, re.sub(r"```(?:json)?", " ", text[:start] + " " + text[end:])
    return None, text


def _in_fields(fields: Mapping[str, Any], letters: Letters) -> Verdict | None:
    """Verdict of the fields of a JSON answer; None without one, or if two fields disagree."""
    found = set(_values(fields))
    verdicts = {_claimed([_plain(value)], letters, False) or _alone(_plain(value), letters) for value in found}
    return verdicts.pop() if len(verdicts) == 1 else None


def _values(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if str(name).strip().lower().replace(" ", "_").replace("-", "_") in KEYS:
            yield value if isinstance(value, str) else ""
