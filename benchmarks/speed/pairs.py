"""Training pairs of all sides: human preferences of HH-RLHF if they lie beside the project, else toy text."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from stagealign.data.records import Pair

TURN = "\n\nAssistant:"
WORDS = ("a", "slow", "film", "of", "rain", "and", "long", "roads", "where", "nobody", "says", "what", "they", "want")


def data_file() -> Path:
    """Path of the HH-RLHF test split, which may be absent."""
    return Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf" / "harmless_base_test.jsonl.gz"


def hh_rlhf(file: Path) -> tuple[list[Pair], dict[str, int]]:
    """Usable pairs of the split, and the number of other rows by reason; a prompt ends with the last "Assistant:"."""
    pairs, drops = [], Counter[str]()
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, turn, chosen = row["chosen"].rpartition(TURN)
            other, _, rejected = row["rejected"].rpartition(TURN)
            if prompt != other:
                drops["prompts differ"] += 1
            elif not chosen.strip() or not rejected.strip():
                drops["empty completion"] += 1
            elif chosen == rejected:
                drops["chosen equals rejected"] += 1
            else:
                pairs.append(Pair(prompt + turn, chosen, rejected, "off", 0.0))
    return pairs, dict(drops)


def toy(count: int, seed: int) -> list[Pair]:
    """Pairs of random words about as long as a short conversation."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " " + " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [Pair(f"\n\nHuman:{text(8, 40)}{TURN}", text(4, 30), text(4, 30), "off", 0.0) for _ in range(count)]


def choose(count: int, seed: int) -> tuple[list[Pair], str]:
    """`count` pairs drawn with `seed`, and a description of them."""
    if not data_file().is_file():
        return toy(count, seed), "toy text"
    return random.Random(seed).sample(hh_rlhf(data_file())[0], count), "HH-RLHF harmless-base, test split"


def exactly(lm: Any, count: int, length: int, seed: int) -> list[Pair]:
    """Pairs whose two sides have `length` tokens each: half are the prompt's, the last is EOS.

    Raises ValueError if no word is one token of the tokenizer.
    """
    rng = random.Random(seed)
    words = [f" {word}" for word in WORDS if len(lm.completion_ids(f" {word}", ended=False)) == 1] or list("abcdefgh")
    if any(len(lm.completion_ids(word, ended=False)) != 1 for word in words):
        raise ValueError("tokenizer: no word is a single token; use another tokenizer")
    half = length // 2

    def text(tokens: int) -> str:
        return "".join(rng.choices(words, k=tokens))

    return [Pair(text(half), text(length - half - 1), text(length - half - 1), "off", 0.0) for _ in range(count)]
