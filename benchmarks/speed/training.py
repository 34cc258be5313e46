"""Preference training: ours against TRL's DPOTrainer as it comes, each run in a process of its own.

Same pairs, same seeded weights, fp32, same threads. The clock runs from text and loaded weights to trained weights, so
tokenising is in both times and our one pass of the reference model in ours. TRL's settings are its defaults: batch 8,
live reference, gradient checkpointing; only what needs a GPU or a network is off.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.speed import pairs as source

BATCH, BETA, LEARNING_RATE, MAX_LENGTH, SEED = 8, 0.1, 1e-6, 1024, 0
"""TRL's defaults, which ours is given too."""


def measure(repeats: int, threads: int, small: bool, pairs: int = 16) -> dict[str, Any]:
    """Check and interleaved runs of both sides; peak memory in MB is that of the whole process."""
    sizes = {"pairs": 4 if small else pairs, "threads": threads, "small": small}
    check = run("check", **sizes | {"pairs": 16})
    assert check["difference"] < 1e-5, f"the two losses differ, so there is nothing to compare: {check}"
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for _ in range(repeats):
        for side, done in runs.items():
            done.append(run(side, **sizes))
    return {"sizes": sizes, "check": check, "runs": runs}


def run(side: str, **sizes: Any) -> dict[str, Any]:
    """What one side says of itself from its own process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(sizes["threads"]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.speed.training", side, json.dumps(sizes)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: ended with {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def policy(small: bool, seed: int = SEED) -> Any:
    """Pythia-160m's shape with seeded weights, without dropout; two thin layers of it where `small`."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from stagealign.lm import LanguageModel
    from stagealign.sft import byte_tokenizer, random_pythia

    if not small:
        return LanguageModel(random_pythia(seed).eval(), tokenizer())
    torch.manual_seed(seed)
    tiny = GPTNeoXConfig(
        vocab_size=264, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return LanguageModel(AutoModelForCausalLM.from_config(tiny).eval(), byte_tokenizer())


def tokenizer() -> Any:
    """SmolLM2's tokenizer where the lab has it (Pythia's is on the hub only; as many tokens a word), else bytes."""
    from transformers import AutoTokenizer

    from stagealign.sft import byte_tokenizer
    from stagealign.store import default_home

    folder = default_home() / "lab" / "smollm2"
    found = AutoTokenizer.from_pretrained(folder) if folder.is_dir() else byte_tokenizer()
    found.chat_template = None
    return found


def trl_trainer(lm: Any, pairs: list[Any], reference: Any, folder: str) -> Any:
    """TRL's DPOTrainer with its defaults."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=folder,
        num_train_epochs=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=SEED,
    )
    given = (settings.per_device_train_batch_size, settings.beta, settings.learning_rate, settings.max_length)
    assert given == (BATCH, BETA, LEARNING_RATE, MAX_LENGTH), f"TRL's defaults are now {given}"
    rows = Dataset.from_list([{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs])
    return DPOTrainer(lm.model, reference, settings, train_dataset=rows, processing_class=lm.tokenizer)


def ours(lm: Any, pairs: list[Any], folder: str) -> None:
    """Trains `lm` with the engine, its reference log-probs included."""
    from stagealign.registry import DPO
    from stagealign.train import Settings, TrainingSet, align, reference_logps, tokenize

    tokens = tokenize(lm, pairs, MAX_LENGTH)
    data = TrainingSet(tokens, reference_logps(lm, tokens, None, None))
    settings = Settings(LEARNING_RATE, BATCH, 1, 0.0, "linear", 1.0, "float32", SEED, resume=False)
    align(lm, data, replace(DPO, beta=BETA), settings, Path(folder))


def check(lm: Any, pairs: list[Any], text: str, folder: str, small: bool) -> dict[str, Any]:
    """Both losses of four pairs; other weights are the reference, so that the margins are not 0.

    The four with the shortest completions: fp32 keeps seven digits, so a sum of thousands of nats is not known to 1e-5.
    """
    import torch

    from stagealign.logps import completion_logps, pack
    from stagealign.losses import Constants, Logps, sigmoid
    from stagealign.train import hidden_states, reference_logps, tokenize

    reference = policy(small, SEED + 1)
    tokens = tokenize(lm, pairs, MAX_LENGTH)
    places = sorted(range(len(pairs)), key=lambda i: len(tokens[i].chosen) + len(tokens[i].rejected))[:4]
    few = [tokens[i] for i in places]
    packed = pack(few, lm.model.config.hidden_size)
    with torch.no_grad():
        found = completion_logps(hidden_states(lm.body, packed), lm.head, packed).view(-1, 2)
    logps = Logps(*found.T, *reference_logps(reference, few, None, None).T, *packed.lengths.view(-1, 2).T)
    trainer = trl_trainer(lm, pairs, reference.model, folder)
    rows = [trainer.train_dataset[i] for i in places]
    same = all(
        tuple(row[f"{name}_ids"]) == getattr(one, name) for row, one in zip(rows, few, strict=True) for name in NAMES
    )
    assert same, "the two sides tokenise these pairs unlike each other"
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    loss = sigmoid(logps, Constants(BETA)).mean().item()
    lengths = sorted(one.tokens for one in tokens)
    return {
        "ours": loss,
        "trl": theirs,
        "difference": abs(loss - theirs),
        "pairs": text,
        "tokenizer": "bytes" if lm.tokenizer.vocab_size < 1000 else "SmolLM2",
        "tokens_a_pair": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
    }


NAMES = ("prompt", "chosen", "rejected")


def main(side: str, pairs: int, threads: int, small: bool) -> dict[str, Any]:
    """One side's seconds, pairs a second and peak memory; or what the check found."""
    import copy

    import torch

    torch.set_num_threads(threads)
    lm = policy(small)
    chosen, text = (source.toy(pairs, SEED), "toy text") if small else source.choose(pairs, SEED)
    with tempfile.TemporaryDirectory() as folder:
        if side == "check":
            return check(lm, chosen, text, folder, small)
        if side == "trl":
            reference = copy.deepcopy(lm.model)
            started, worked = time.perf_counter(), time.process_time()
            trl_trainer(lm, chosen, reference, folder).train()
        else:
            started, worked = time.perf_counter(), time.process_time()
            ours(lm, chosen, folder)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    speed = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "per_second": round(pairs / seconds, 4)}
    return speed | {"peak_mb": round(peak)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
