"""Token ids of the texts that a reward model scores: a conversation, a pair of texts or a completion."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from stagealign.data.texts import Messages
from stagealign.policy.conversation import joint_ids, plain_form, plain_prompt, rendered_answer, rendered_prompt

TextForm = Literal["chat", "pair", "completion"]
"""Form of a scored text: `chat` is the conversation by the chat template, `pair` is prompt and completion, `completion`
is the completion alone."""


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one scored text, at most as many as the reward model reads."""

    ids: list[int]
    types: list[int]
    """Segment of each token: 1 for the second text of a pair, else 0."""
    cut: bool = False
    lost: bool = False
    """True if nothing of the completion is left."""


@dataclass(frozen=True)
class RowWriter:
    """Tokenizes texts for one reward model.

    An encoder's tokenizer has a separator: it joins a pair as `[CLS] prompt [SEP] completion [SEP]`, with segments. A
    decoder reads one text: BOS if its tokenizer puts one, the prompt, the completion, and EOS, at which its head reads
    the score. White space separates completion and prompt; a space is added where neither brings any.
    Source: trl 1.16 `RewardTrainer`, which adds EOS to texts, and nothing to what a chat template wrote. Deviation: the
    space.
    """

    tokenizer: PreTrainedTokenizerBase
    text: TextForm
    max_length: int

    def row(self, prompt: str, messages: Messages | None, completion: str) -> TokenRow:
        """One scored text; `prompt` is the text of `messages`. Raises RefusedByTemplate in form `chat`."""
        if self.text == "chat":
            return self._chat(messages or prompt, completion)
        if self._separates():
            return self._pair(prompt, completion)
        return self._joint(prompt, messages, completion)

    def _chat(self, prompt: str | Messages, completion: str) -> TokenRow:
        ids = self._tokens(rendered_answer(self.tokenizer, prompt, completion), special=False)
        if len(ids) <= self.max_length:
            return _single(ids)
        asked = self._tokens(rendered_prompt(self.tokenizer, prompt), special=False)
        return _single(ids[: self.max_length], cut=True, lost=len(asked) >= self.max_length)

    def _separates(self) -> bool:
        return self.tokenizer.sep_token_id is not None or self.tokenizer.cls_token_id is not None

    def _pair(self, prompt: str, completion: str) -> TokenRow:
        texts = (prompt, completion) if self.text == "pair" else (completion,)
        ids = self._tokens(*texts)
        over = len(ids) - self.max_length
        if over > 0 and over >= len(self._tokens(completion, special=False)):
            return _single([], cut=True, lost=True)
        side = "only_second" if self.text == "pair" else "only_first"  # keeps the separator at the end
        limits: dict[str, Any] = {"truncation": side, "max_length": self.max_length} if over > 0 else {}
        encoded = self.tokenizer(*texts, verbose=False, **limits)
        ids = list(encoded.input_ids)
        return TokenRow(ids, list(encoded.get("token_type_ids", [0] * len(ids))), cut=over > 0)

    def _joint(self, prompt: str, messages: Messages | None, completion: str) -> TokenRow:
        end = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        start = ""
        if self.text == "pair":
            turns = plain_form(prompt, messages)
            start = plain_prompt(turns)
            continued = not isinstance(turns, str) and turns[-1]["role"] == "assistant"
            apart = continued or start[-1:].isspace() or completion[:1].isspace() or not completion
            start += "" if apart else " "
        ids = joint_ids(self.tokenizer, start + completion)
        room = self.max_length - len(end)
        if ids[-1:] == end:  # the text brings its own
            ids = ids[:-1]
        if len(ids) <= room:
            return _single([*ids, *end])
        lost = bool(start) and len(joint_ids(self.tokenizer, start)) >= room
        return _single([*ids[:room], *end], cut=True, lost=lost)

    def _tokens(self, *texts: str, special: bool = True) -> list[int]:
        return list(self.tokenizer(*texts, add_special_tokens=special, verbose=False).input_ids)


def _single(ids: list[int], cut: bool = False, lost: bool = False) -> TokenRow:
    return TokenRow(ids, [0] * len(ids), cut, lost)
