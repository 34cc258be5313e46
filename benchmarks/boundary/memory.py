"""Peak memory of the whole command over a file of 2,000 rows and one of 100,000, each in a process of its own.

`recorded`: candidates scored beforehand, every prompt of the file used. `reward`: a tiny policy is sampled and a tiny
reward model scores, with the command's own 2,000 prompts at most.
"""

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.boundary.machine import boundary, hardware

SMALL, LARGE = 2_000, 100_000
WORDS = ("a", "slow", "film", "of", "rain", "and", "long", "roads", "where", "nobody", "says", "what", "they", "want")
EVERY = ["--prompts", "1000000"]


def measure(threads: int = 1, large: int = LARGE) -> list[dict[str, Any]]:
    """One row an oracle: peak MB at both sizes and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy, reward = tiny_models(folder)
        runs: dict[str, tuple[Callable[[Path, int], Path], Callable[[Path], list[str]]]] = {
            "recorded, every prompt": (scored, lambda file: ["--oracle", f"recorded:{file}", *EVERY]),
            "recorded, 2,000 prompts": (scored, lambda file: ["--oracle", f"recorded:{file}"]),
            "reward, 2,000 prompts": (
                pairs,
                lambda file: ["--policy", policy, "--data", str(file), "--oracle", reward, "--max-new-tokens", "8"],
            ),
        }
        return [_row(oracle, *how, folder, threads, large) for oracle, how in runs.items()]


def _row(
    oracle: str,
    write: Callable[[Path, int], Path],
    arguments: Callable[[Path], list[str]],
    folder: Path,
    threads: int,
    large: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {"oracle": oracle}
    for size in (SMALL, large):
        file = write(folder / "rows.jsonl", size)
        with tempfile.TemporaryDirectory(dir=folder) as home:
            found, used = boundary(arguments(file), Path(home), threads)
        megabytes = round(file.stat().st_size / 2**20, 1)
        row[str(size)] = {"prompts": found["prompts_used"], "file_mb": megabytes, **used}
    row["ratio"] = round(row[str(large)]["peak_mb"] / row[str(SMALL)]["peak_mb"], 3)
    row["hardware"] = hardware(threads)
    return row


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def scored(file: Path, rows: int) -> Path:
    """Two candidates a source and prompt, each prompt's rows far apart, with scores."""
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
    """Preference data with a prompt a row."""
    rng = random.Random(rows)
    with open(file, "w", encoding="utf-8") as out:
        for prompt in range(rows):
            texts = {"chosen": _text(rng, 20), "rejected": _text(rng, 20)}
            out.write(json.dumps({"prompt": f"Write about {prompt}.", **texts}) + "\n")
    return file


def tiny_models(folder: Path) -> tuple[str, str]:
    """A random policy of two thin layers on bytes and a random reward model, saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from stagealign.sft import byte_tokenizer

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
