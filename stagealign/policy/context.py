"""What a model's context leaves for completions: new tokens of each prompt, and prompts that leave none.

The cap is part of what is sampled: it follows from the prompt, the policy's config and the decoding alone, so all
samplers have the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagealign.base.errors import BadData
from stagealign.base.words import short
from stagealign.data.records import Pair, prompt_hash
from stagealign.grid.spec import Decoding
from stagealign.policy.lm import LanguageModel
from stagealign.store.artifact import Facts

FILLED = "prompt fills the policy's context"
TOO_LONG = "prompt fills max_length of training"
"""Reasons of a drop, in records and results."""


def context_of(lm: LanguageModel) -> int | None:
    """Most tokens of a prompt with its completion; None if the architecture has no limit, as of a state-space model."""
    config = lm.model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def room(lm: LanguageModel, prompt_tokens: int, decoding: Decoding) -> int:
    """New tokens that a prompt may get: as asked, and as the model's context leaves; below 1 if it leaves none."""
    limit = context_of(lm)
    return decoding.max_new_tokens if limit is None else min(decoding.max_new_tokens, limit - prompt_tokens)


def check_fits(lm: LanguageModel, prompt: str, tokens: int, decoding: Decoding) -> None:
    """Raises BadData, naming the prompt, for one that leaves no room for a completion."""
    if room(lm, tokens, decoding) < 1:
        raise BadData(
            f"prompt {short(prompt)}: its {tokens:,} tokens fill the policy's context of {context_of(lm):,}; "
            "shorten it or leave it out"
        )


@dataclass(frozen=True)
class Rooms:
    """New tokens that each prompt of a set may get, by prompt hash; those that get none are dropped."""

    asked: int
    """`max_new_tokens` of the decoding."""
    most: Mapping[str, int]
    """At least 1."""
    dropped: Mapping[str, int]
    """Tokens of each prompt that fills the context."""

    @property
    def facts(self) -> Facts:
        """Counts for a record: prompts capped below what was asked, drops by reason, and the dropped prompts."""
        return {
            "capped": sum(tokens < self.asked for tokens in self.most.values()),
            "drops": {FILLED: len(self.dropped)} if self.dropped else {},
            "dropped": dict(self.dropped),
        }


def rooms(lm: LanguageModel, prompts: Mapping[str, Sequence[int]], decoding: Decoding) -> Rooms:
    """Rooms of prompts given as token ids by prompt hash."""
    left = {name: room(lm, len(ids), decoding) for name, ids in prompts.items()}
    return Rooms(
        decoding.max_new_tokens,
        {name: tokens for name, tokens in left.items() if tokens >= 1},
        {name: len(prompts[name]) for name, tokens in left.items() if tokens < 1},
    )


def fitting(
    lm: LanguageModel, prompts: Mapping[str, Sequence[int]], decoding: Decoding, where: str, part: bool = False
) -> Rooms:
    """Rooms of the prompts of a file. Raises BadData if all of them fill the context, unless they are a `part`."""
    found = rooms(lm, prompts, decoding)
    if prompts and not found.most and not part:
        raise BadData(
            f"{where}: each of {len(prompts)} prompts fills the policy's context of {context_of(lm):,} tokens; shorten "
            "the prompts, or choose a policy with a longer context"
        )
    return found


def trainable(lm: LanguageModel, pairs: Sequence[Pair], max_length: int) -> tuple[list[Pair], dict[str, int]]:
    """(pairs whose prompts leave room for a completion within `max_length`, tokens of the other prompts by hash).

    The same pairs come out wherever tokenizer and `max_length` are the same, so values by place stay joined. Raises
    BadData if none is left.
    """
    tokens = {pair.prompt: len(lm.prompt_ids(pair.prompt)) for pair in pairs}
    kept = [pair for pair in pairs if tokens[pair.prompt] < max_length]
    if pairs and not kept:
        raise BadData(
            f"pairs: each of {len(tokens)} prompts fills max_length {max_length}; raise it, or shorten the prompts"
        )
    return kept, {prompt_hash(prompt): count for prompt, count in tokens.items() if count >= max_length}


def left_out(dropped: Mapping[str, int]) -> Facts:
    """Facts of what `trainable` dropped, by reason and by prompt."""
    return {"drops": {TOO_LONG: len(dropped)} if dropped else {}, "dropped": dict(dropped)}
