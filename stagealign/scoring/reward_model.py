"""Reward models: sequence classifiers with one logit, which score each candidate on its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from stagealign.base.errors import StagealignError
from stagealign.policy.checkpoints import (
    READING,
    length_batches,
    padded,
    read_config,
    read_headers,
    read_tokenizer,
    read_weights,
    unreadable,
    weights_identity,
)
from stagealign.policy.conversation import RefusedByTemplate
from stagealign.policy.roles import check_reward
from stagealign.policy.templates import prepare_template
from stagealign.policy.weight_files import hub_header
from stagealign.scoring.contest import Contest, Judged
from stagealign.scoring.reward_rows import RowWriter, TextForm, TokenRow
from stagealign.store.artifact import Identity

LONGEST = 4096
"""Most tokens of a text if neither tokenizer nor config sets a limit."""
WINDOW = 64
"""Number of contests that are tokenized and sorted together; not part of identity."""


class RewardOracle:
    """Oracle that scores each candidate on its own, so equal texts always tie.

    A text of more than `max_length` tokens is cut at the end of its completion. If nothing of the completion is left,
    the verdict is a failure, as the score would depend on the prompt only; so is a conversation that the chat template
    refuses.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        text: TextForm,
        max_length: int,
        batch_tokens: int | None = None,
    ):
        """`weights`: identity of the loaded weights. `batch_tokens`: most tokens of a batch, padding included."""
        self.model, self.tokenizer, self.weights = model, tokenizer, weights
        self.writer = RowWriter(tokenizer, text, max_length)
        self.batch_tokens = batch_tokens or (65_536 if model.device.type == "cuda" else 1_024)

    @property
    def text(self) -> TextForm:
        """Form of a scored text."""
        return self.writer.text

    @property
    def max_length(self) -> int:
        """Most tokens of a scored text."""
        return self.writer.max_length

    @property
    def identity(self) -> Identity:
        return {
            "kind": "reward",
            "version": 2,
            "weights": self.weights,
            "text": self.text,
            "max_length": self.max_length,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """Yields one verdict per contest, in order; scores `WINDOW` contests at a time."""
        for start in range(0, len(contests), WINDOW):
            yield from self._judge(contests[start : start + WINDOW])

    def _judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        rows: dict[ScoredText, TokenRow | RefusedByTemplate] = {}  # equal texts are scored once
        for contest in contests:
            for text in _texts(contest):
                if text not in rows:
                    rows[text] = self._row(contest, text.completion)
        scored = [text for text, row in rows.items() if isinstance(row, TokenRow)]
        scores = dict(zip(scored, self._run([_readable(rows[text]) for text in scored]), strict=True))
        for contest in contests:
            own = _texts(contest)
            failed = self._failure([rows[text] for text in own], [scores.get(text, 0.0) for text in own])
            if failed:
                yield Judged((), (), failed=failed)
            else:
                values = tuple(scores[text] for text in own)
                cut = sum(_readable(rows[text]).cut for text in own)
                yield Judged(values[: len(contest.on)], values[len(contest.on) :], truncated=cut)

    def _row(self, contest: Contest, completion: str) -> TokenRow | RefusedByTemplate:
        try:
            return self.writer.row(contest.prompt, contest.messages, completion)
        except RefusedByTemplate as error:
            return error

    def _failure(self, rows: Sequence[TokenRow | RefusedByTemplate], scores: Sequence[float]) -> str | None:
        """Reason why the scores of one contest cannot be used; None if they can."""
        refused = next((row for row in rows if isinstance(row, RefusedByTemplate)), None)
        if refused is not None:
            return f"the reward model cannot read the prompt: {refused}"
        if any(isinstance(row, TokenRow) and row.lost for row in rows):
            return f"the prompt alone fills the reward model's {self.max_length} tokens"
        return None if all(map(isfinite, scores)) else "the reward model gave a number that is not finite"

    @torch.inference_mode()
    def _run(self, rows: Sequence[TokenRow]) -> list[float]:
        out = [0.0] * len(rows)
        for places in length_batches([len(row.ids) for row in rows], self.batch_tokens):
            for i, value in zip(places, self._logits([rows[i] for i in places]).tolist(), strict=True):
                out[i] = value
        return out

    def _logits(self, rows: Sequence[TokenRow]) -> Tensor:
        """Scores of one batch, shape (B,).

        A decoder reads its score at the last token that is not `config.pad_token_id`. Without a configured one, the
        batch is padded with an id that its rows do not contain. Padding with EOS would read rows that end in EOS one
        token early. Segments go to models that embed them.
        """
        text = self.model.config.get_text_config()  # transformers reads it there
        configured = getattr(text, "pad_token_id", None)
        seen = {token for row in rows for token in row.ids}
        unused = (token for token in range(text.vocab_size) if token not in seen)
        pad = next(unused, 0) if configured is None else int(configured)
        try:
            text.pad_token_id = pad
            ids, mask = padded([row.ids or [pad] for row in rows], pad, self.model.device)
            types, _ = padded([row.types or [0] for row in rows], 0, self.model.device)
            segments = {"token_type_ids": types} if _embeds_segments(self.model.config) else {}
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask, **segments).logits[:, 0].float()
        finally:
            text.pad_token_id = configured
        return logits


def load(
    name: str,
    revision: str | None = None,
    text: TextForm | Literal["auto"] = "auto",
    max_length: int | None = None,
    dtype: str = "float32",
    batch_tokens: int | None = None,
) -> RewardOracle:
    """A reward model from a local folder or the hub, ready to judge; safetensors only, no remote code.

    Text `auto` is `chat` if the tokenizer has a chat template, else `pair`. `max_length` defaults to the smaller limit
    of tokenizer and config. Raises StagealignError unless it is a classifier with one logit.
    """
    if text not in (*get_args(TextForm), "auto"):
        raise StagealignError(f"text {text!r}: unknown; one of auto, {', '.join(get_args(TextForm))}")
    config, tokenizer, chosen = check(name, revision, text)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = min(tokenizer.model_max_length, positions or LONGEST)
    if max_length is not None and not 0 < max_length <= limit:
        raise StagealignError(f"max_length {max_length}: this reward model reads 1 to {limit} tokens")
    model = read_weights(AutoModelForSequenceClassification, name, config, revision, dtype)
    longest = min(max_length or min(limit, LONGEST), _positions(model))
    oracle = RewardOracle(model, tokenizer, weights_identity(name, config), chosen, longest, batch_tokens)
    _try(oracle, name)
    return oracle


def check(
    name: str, revision: str | None = None, text: TextForm | Literal["auto"] = "auto"
) -> tuple[Any, PreTrainedTokenizerBase, TextForm]:
    """Config and tokenizer of a reward model, and the form of its texts; reads no weights.

    Raises StagealignError if it is no classifier with one logit, is incomplete or quantised without its library, if its
    tokenizer has ids outside of the embedding, or if the chat template that it is asked with fails.
    """
    config = read_config(name, revision)
    tensors = read_headers(name, config, revision)
    if not tensors and config.num_labels != 1:
        tensors = hub_header(name, revision)
    check_reward(name, config, tensors)
    tokenizer = read_tokenizer(name, revision, config)
    chosen: TextForm = text if text != "auto" else "chat" if tokenizer.chat_template else "pair"
    if chosen == "chat":
        if not tokenizer.chat_template:
            raise StagealignError(f"checkpoint {name!r}: its tokenizer has no chat template; take text='pair'")
        prepare_template(tokenizer, name)
    return config, tokenizer, chosen


def _positions(model: PreTrainedModel) -> int:
    """Most tokens that position embeddings with a row for padding leave, as RoBERTa's do; `LONGEST` without such."""
    tables = [one for key, one in model.named_modules() if key.endswith("position_embeddings")]
    return min(
        (
            one.num_embeddings - one.padding_idx - 1
            for one in tables
            if isinstance(one, torch.nn.Embedding) and one.padding_idx is not None
        ),
        default=LONGEST,
    )


def _try(oracle: RewardOracle, name: str) -> None:
    """Raises StagealignError for a reward model that cannot score two short texts of unequal lengths."""
    try:
        list(oracle.judge([Contest("Hello", ("Hi",), ("Hi there",))]))
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise StagealignError(
            f"checkpoint {name!r}: {type(oracle.model).__name__} does not score a short text "
            f"({(str(error).splitlines() or [''])[0][:200]}); use a reward model of another architecture"
        ) from error


def parameters_of(name: str, config: Any) -> float:
    """Number of weights of the classifier that a config describes; reads no weights.

    Raises StagealignError for an architecture without a classifier.
    """
    try:
        with torch.device("meta"):
            return float(AutoModelForSequenceClassification.from_config(config).num_parameters())
    except READING as error:
        raise unreadable(name, error) from error


@dataclass(frozen=True)
class ScoredText:
    """A text that is scored once, however often it comes."""

    prompt: str
    turns: tuple[tuple[str, str], ...]
    """Role and content of each turn of the prompt; empty for plain text."""
    completion: str


def _texts(contest: Contest) -> list[ScoredText]:
    turns = tuple((turn["role"], turn["content"]) for turn in contest.messages or ())
    return [ScoredText(contest.prompt, turns, completion) for completion in (*contest.on, *contest.off)]


def _readable(row: TokenRow | RefusedByTemplate) -> TokenRow:
    assert isinstance(row, TokenRow), row
    return row


def _embeds_segments(config: Any) -> bool:
    """True for a model with an embedding of segments, as BERT has; XLNet has one of its own kind."""
    return getattr(config, "type_vocab_size", 0) > 1 or config.model_type == "xlnet"
