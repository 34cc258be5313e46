"""A local causal language model as judge, by its probabilities of "m" and "M" after the official prompt."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval.answers import JudgeAnswer
from stagealign.evaluate.alpaca_eval.asking import Keep
from stagealign.evaluate.alpaca_eval.official import Official, Question
from stagealign.grid.prices import TokenPrice
from stagealign.policy.checkpoints import length_batches, padded, read_config, weights_identity
from stagealign.policy.context import context_of
from stagealign.policy.conversation import RefusedByTemplate, joint_ids
from stagealign.policy.lm import LanguageModel, load
from stagealign.store.artifact import Identity

LETTERS = ("m", "M")
SHORT = 6
"""Most characters of a vocabulary entry that decodes to one letter: `m`, `Ġm`, `▁m`, `<0x6D>`."""


class LocalJudge:
    """Judge that prefers the text shown first with probability p("m") / (p("m") + p("M")) of the next token.

    Every vocabulary entry that is a letter, with or without a space before it, counts as that letter.
    """

    price: TokenPrice | None = None
    spent: float | None = None

    def __init__(self, lm: LanguageModel, weights: str, official: Official, batch_tokens: int | None = None):
        """`weights`: identity of the loaded weights. `batch_tokens`: most tokens of a batch, padding included.

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
            "version": 2,
            "model": self.named,
            "dtype": str(self.lm.model.dtype).removeprefix("torch."),
            **self.official.identity,
        }

    @cached_property
    def longest(self) -> int | None:
        """Most tokens that the model can read; None if its config has no limit."""
        return context_of(self.lm)

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        """Judges all questions, longest first. A prompt beyond the model's context is a failure; it is never cut."""
        rows = [self.prompt_ids(question) if question.messages else [] for question in questions]
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
        """Returns 0 tokens and no cost, as nothing is billed."""
        return 0, None

    def close(self) -> None:
        """Does nothing, as there is no connection."""

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids of a question up to the position of the letter.

        If the chat template has no system role, the system text is put into the user's turn. A model without a template
        reads plain text.
        """
        turns = [dict(turn) for turn in question.messages]
        if not self.lm.tokenizer.chat_template:
            return joint_ids(self.lm.tokenizer, "\n\n".join(turn["content"] for turn in turns) + "\n")
        try:
            return self.lm.prompt_ids(turns)
        except RefusedByTemplate:
            return self.lm.prompt_ids([{"role": "user", "content": "\n\n".join(turn["content"] for turn in turns)}])

    @torch.inference_mode()
    def logprobs(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of "m" and of "M" after each row, shape (B, 2), in nats."""
        pad = self.lm.tokenizer.pad_token_id
        ids, mask = padded(rows, 0 if pad is None else pad, self.lm.model.device)
        last = mask.sum(1) - 1
        some, where = last.unique(return_inverse=True)  # a head is expensive, so it runs at last positions only
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
        short = [token for entry, token in vocabulary.items() if len(entry) <= SHORT and token not in special]
        return sorted(token for token in short if tokenizer.decode([token]).strip() == letter)


def open_local(name: str, official: Official) -> LocalJudge:
    """Loads a judge from a hub id or folder, in bfloat16 on a GPU, else in float32. Raises StagealignError."""
    weights = weights_identity(name, read_config(name))
    cuda = torch.cuda.is_available()
    lm = load(name, dtype="bfloat16" if cuda else "float32")
    lm.model.to("cuda" if cuda else "cpu")
    return LocalJudge(lm, weights, official)
