"""A local causal language model as judge: the probabilities of "m" and "M" after the official prompt, in batches."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jinja2 import TemplateError
from torch import Tensor

from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer
from stagealign.evaluate.alpaca_eval.asking import Keep
from stagealign.evaluate.alpaca_eval.official import Official, Question
from stagealign.grid.prices import TokenPrice
from stagealign.policy.checkpoints import length_batches, padded, read_config, weights_identity
from stagealign.policy.lm import LanguageModel, load
from stagealign.store.artifact import Identity

LETTERS = ("m", "M")
SHORT = 6
"""Characters of a vocabulary entry that may decode to one letter: `m`, `Ġm`, `▁m`, `<0x6D>`."""


class LocalJudge:
    """Prefers what is shown first with probability p("m") / (p("m") + p("M")) of the next token.

    Every vocabulary entry that is the letter, with or without a space before it, counts as the letter.
    """

    price: TokenPrice | None = None
    spent: float | None = None

    def __init__(self, lm: LanguageModel, weights: str, official: Official, batch_tokens: int | None = None):
        """`weights` names what was loaded; `batch_tokens` bounds a batch with its padding, and memory with it.

        Raises StagealignError for a vocabulary without one of the letters.
        """
        self.lm, self.named, self.official = lm, weights, official
        self.expected: str | None = weights
        self.batch_tokens = batch_tokens or (32_768 if lm.model.device.type == "cuda" else 4_096)
        self.letters = {letter: self._entries(letter) for letter in LETTERS}
        for letter, ids in self.letters.items():
            if not ids:
                raise StagealignError(f"judge {weights}: no token for {letter!r}; use a model whose tokenizer has one")

    @property
    def identity(self) -> Identity:
        return {
            "kind": "local",
            "version": 1,
            "model": self.named,
            "dtype": str(self.lm.model.dtype).removeprefix("torch."),
            **self.official.identity,
        }

    @cached_property
    def longest(self) -> int | None:
        """Tokens that the model can read; None where its config does not say."""
        return getattr(self.lm.model.config, "max_position_embeddings", None)

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        """Judges all questions, longest first; a prompt that the model cannot read whole is a failure, never cut."""
        rows = [self.prompt_ids(one) if one.messages else [] for one in questions]
        fits = []
        for place, (question, row) in enumerate(zip(questions, rows, strict=True)):
            if not row:
                keep(question, JudgeAnswer(failed="the official prompt cannot carry these texts"))
            elif self.longest is not None and len(row) > self.longest:
                keep(question, JudgeAnswer(failed=f"a prompt of {len(row)} tokens; the judge reads {self.longest}"))
            else:
                fits.append(place)
        for batch in length_batches([len(rows[i]) for i in fits], self.batch_tokens):
            places = [fits[i] for i in batch]
            scores = self.logprobs([rows[i] for i in places]).tolist()
            for i, (m, other) in zip(places, scores, strict=True):
                keep(questions[i], self._answer(questions[i], m, other, len(rows[i])))

    def estimate(self, questions: Sequence[Question]) -> tuple[int, float | None]:
        """No tokens and no USD: nothing is billed."""
        return 0, None

    def close(self) -> None:
        """Nothing to close."""

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids up to where the letter stands.

        A chat template that has no system role gets its text with the user's; a model without any reads plain text.
        """
        turns = [dict(one) for one in question.messages]
        if not self.lm.tokenizer.chat_template:
            return list(self.lm.tokenizer("\n\n".join(one["content"] for one in turns) + "\n").input_ids)
        try:
            return self.lm.prompt_ids(turns)
        except TemplateError:
            return self.lm.prompt_ids([{"role": "user", "content": "\n\n".join(one["content"] for one in turns)}])

    @torch.inference_mode()
    def logprobs(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of "m" and of "M" after each row, shape (B, 2), in nats."""
        pad = self.lm.tokenizer.pad_token_id
        ids, mask = padded(rows, 0 if pad is None else pad, self.lm.model.device)
        last = mask.sum(1) - 1
        some, where = last.unique(return_inverse=True)  # the head is as large as the model: at last places only
        logits = self.lm.model(input_ids=ids, attention_mask=mask, logits_to_keep=some, use_cache=False).logits
        logps = logits[torch.arange(len(rows), device=last.device), where].float().log_softmax(-1)
        return torch.stack([logps[:, self.letters[letter]].logsumexp(-1) for letter in LETTERS], dim=1).cpu()

    def _answer(self, question: Question, m: float, other: float, tokens: int) -> JudgeAnswer:
        pair = torch.tensor([m, other], dtype=torch.float64)
        if not pair.logsumexp(0).isfinite():
            return JudgeAnswer(
                failed="the judge gave neither 'm' nor 'M' a finite log-probability", prompt_tokens=tokens
            )
        first, letters = float(pair.softmax(0)[0]), float(pair.exp().sum())
        return JudgeAnswer(question.preference(first), None, self.named, first, letters, tokens)

    def _entries(self, letter: str) -> list[int]:
        tokenizer = self.lm.tokenizer
        vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        special = set(tokenizer.all_special_ids)
        short = [one for entry, one in vocabulary.items() if len(entry) <= SHORT and one not in special]
        return sorted(one for one in short if tokenizer.decode([one]).strip() == letter)


def open_local(name: str, official: Official) -> LocalJudge:
    """A judge of that hub id or folder; bfloat16 on a GPU, else float32. Raises StagealignError."""
    weights = weights_identity(name, read_config(name))
    cuda = torch.cuda.is_available()
    lm = load(name, dtype="bfloat16" if cuda else "float32")
    lm.model.to("cuda" if cuda else "cpu")
    return LocalJudge(lm, weights, official)
