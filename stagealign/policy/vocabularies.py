"""Tokenizers beside the embedding that reads their ids: which tokens have no row, and what has no vocabulary."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stagealign.base.errors import StagealignError

VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "*.model",
    "vocab.*",
    "vocab",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "*vocab*.json",
    "*.vocab",
)
"""Files of which a tokenizer has at least one; without it transformers makes one of special tokens alone."""


def check_files(name: str) -> None:
    """Raises StagealignError for a local folder without the vocabulary of a tokenizer."""
    folder = Path(name)
    if folder.is_dir() and not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise StagealignError(
            f"checkpoint {name!r}: a folder without a tokenizer (tokenizer.json or tokenizer.model); copy the "
            "tokenizer's files of the model that it was trained from into it"
        )


def check_reads(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises StagealignError for a tokenizer that reads ordinary text as nothing, or as unknown tokens alone."""
    ids = tokenizer("Hello there, how are you?", add_special_tokens=False).input_ids
    if not set(ids) - {tokenizer.unk_token_id}:
        raise StagealignError(
            f"checkpoint {name!r}: its tokenizer has no vocabulary: it reads text as "
            f"{'unknown tokens' if ids else 'nothing'}; copy tokenizer.json of the model that it was trained from"
        )


def check_ids(tokenizer: PreTrainedTokenizerBase, config: Any, name: str) -> None:
    """Raises StagealignError, naming tokens, if the tokenizer has ids that the embedding has no row for.

    A pad token without a row is taken off the tokenizer, as padding is masked. No embedding is resized: its new rows
    would be random.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    outside = _outside(tokenizer, rows)
    if set(outside) == {tokenizer.pad_token}:
        _drop_pad(tokenizer)
        outside = _outside(tokenizer, rows)
    if outside:
        some = sorted(outside.items(), key=lambda entry: entry[1])[:3]
        raise StagealignError(
            f"checkpoint {name!r}: its tokenizer has {len(outside)} tokens that the embedding of {rows} rows does not "
            f"have, such as {', '.join(f'{token!r} ({place})' for token, place in some)}; use the tokenizer that these "
            "weights were trained with"
        )


def _outside(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """Tokens with an id of `rows` or more, which an embedding of so many rows cannot read."""
    return {token: place for token, place in tokenizer.get_vocab().items() if place >= rows}


def _drop_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes an added pad token off a tokenizer of the tokenizers library; its text then reads as any other."""
    inner = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        return
    known = json.loads(inner.to_str())
    known["added_tokens"] = [token for token in known["added_tokens"] if token["content"] != tokenizer.pad_token]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**known, "padding": None}))
    tokenizer.pad_token = None
