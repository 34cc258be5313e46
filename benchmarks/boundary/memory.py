"""Peak memory of the whole command over a file of 2,000 rows and one of 100,000, each in a separate process.

`recorded`: candidates scored beforehand. `reward`: a tiny policy is sampled and a tiny reward model scores. Each is
measured with the command's own limit of 2,000 prompts, and with every prompt of the file; the larger file for every
prompt of `reward` has 20,000 rows.
"""

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.boundary.machine import boundary, hardware

SMALL, LARGE = 2_000, 100_000
WORDS = ("a", "slow", "film", "of", "rain", "and", "long", "roads", "where", "nobody", "says", "what", "they", "want")
EVERY = ("--prompts", "1000000")


@dataclass(frozen=True)
class Case:
    """One oracle and its number of prompts."""

    name: str
    write: Callable[[Path, int], Path]
    arguments: tuple[str, ...]
    given: str
    """Option that takes the file, and after a space the prefix of its value."""
    large: int = LARGE

    def command(self, file: Path) -> list[str]:
        option, _, start = self.given.partition(" ")
        return [*self.arguments, option, f"{start}{file}"]


def measure(threads: int = 1, scale: float = 1.0) -> list[dict[str, Any]]:
    """One row for each case: peak MB at both sizes, and their ratio; tests set `scale` below 1 for smaller files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy, reward = tiny_models(folder)
        scoring = ("--policy", policy, "--oracle", reward, "--max-new-tokens", "8")
        cases = [
            Case("recorded, every prompt", scored, EVERY, "--oracle recorded:"),
            Case("recorded, 2,000 prompts", scored, (), "--oracle recorded:"),
            Case("reward, every prompt", pairs, (*scoring, *EVERY), "--data", large=20_000),
            Case("reward, 2,000 prompts", pairs, scoring, "--data"),
        ]
        return [_row(case, folder, threads, scale) for case in cases]


def _row(case: Case, folder: Path, threads: int, scale: float) -> dict[str, Any]:
    sizes = {}
    for size in (int(SMALL * scale), int(case.large * scale)):
        file = case.write(folder / "rows.jsonl", size)
        with tempfile.TemporaryDirectory(dir=folder) as home:
            measured, used = boundary(case.command(file), Path(home), threads)
        megabytes = round(file.stat().st_size / 2**20, 1)
        sizes[f"{size:,} rows"] = {"prompts": measured["prompts_used"], "file_mb": megabytes, **used}
    small, large = (size["peak_mb"] for size in sizes.values())
    return {"oracle": case.name, **sizes, "ratio": round(large / small, 3), "hardware": hardware(threads)}


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def scored(file: Path, rows: int) -> Path:
    """Writes scored candidates, two for each source and prompt; rows of one prompt lie far apart."""
    rng = random.Random(rows)
    with open(file, "w", encoding="utf-8") as out:
        for place in range(4):
            for prompt in range(rows // 4):
                source = ("on", "off")[place % 2]
                asked = f"Write about number {prompt} of {rows}: " + " ".join(WORDS)
                row = {"prompt": asked, "source": source, "completion": _text(rng, 120), "score": rng.random()}
                out.write(json.dumps(row) + "\n")
    return file


def pairs(file: Path, rows: int) -> Path:
    """Writes preference data with a new prompt in each row."""
    rng = random.Random(rows)
    with open(file, "w", encoding="utf-8") as out:
        for prompt in range(rows):
            texts = {"chosen": _text(rng, 20), "rejected": _text(rng, 20)}
            out.write(json.dumps({"prompt": f"Write about {prompt}.", **texts}) + "\n")
    return file


def tiny_models(folder: Path) -> tuple[str, str]:
    """Saves a random policy of two thin layers and a random reward model; returns the folder and the oracle."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from stagealign.policy.start import byte_tokenizer

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    models = {
        "policy": LlamaForCausalLM(LlamaConfig(**shape)),
        "reward": LlamaForSequenceClassification(LlamaConfig(num_labels=1, **shape)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return str(folder / "policy"), f"reward:{folder / 'reward'}"
