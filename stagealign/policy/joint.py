"""Tokens of text that goes on, as that of a prompt with its completion does."""

from transformers import PreTrainedTokenizerBase


def started_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Token ids of text that goes on: with `special`, those that the tokenizer puts before it, without those after."""
    bare = list(tokenizer(text, add_special_tokens=False).input_ids)
    ids = list(tokenizer(text).input_ids) if special else bare
    start = next((at for at in range(len(ids) - len(bare) + 1) if ids[at : at + len(bare)] == bare), None)
    return ids if start is None else ids[: start + len(bare)]
