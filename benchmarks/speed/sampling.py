"""Sampling: ours against transformers' `generate` in plain batches of 16 rows, two candidates a prompt.

Same weights, prompts, decoding and threads, in one process. Chance differs (ours has one stream a candidate), so speed
is counted in tokens a second; that both decode the same is checked greedily first.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stagealign.lm import LanguageModel, end_ids, load
from stagealign.records import Prompt
from stagealign.sample import generate, sample
from stagealign.spec import Decoding
from stagealign.store import default_home

COUNT, BATCH, SEED = 2, 16, 0
FIRST = ("The Silent", "A Distant", "Midnight", "The Last", "Broken", "The Golden", "Winter", "An Ordinary")
SECOND = ("River", "Promise", "Station", "Garden of Stones", "Heart", "Summer", "Road Home", "Affair")
PROMPTS = [
    Prompt(f'Write a one-sentence review of the film "{one} {two}".', "train") for one in FIRST for two in SECOND
]


def measure(repeats: int, threads: int, small: bool) -> dict[str, Any]:
    """Check and interleaved runs of both sides on 64 prompts."""
    import torch

    torch.set_num_threads(threads)
    lm, name = model(small)
    decoding = Decoding(max_new_tokens=8 if small else 32)
    prompts = PROMPTS[:8] if small else PROMPTS
    check = agree(lm, prompts[:4], replace(decoding, temperature=0.0))
    assert check["equal"], "the two decode unlike each other greedily, so there is nothing to compare"
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "generate": []}
    for _ in range(repeats):
        for side, done in runs.items():
            started, worked = time.perf_counter(), time.process_time()
            if side == "ours":
                whole = sample(lm, prompts, decoding, COUNT, SEED)
                tokens = sum(one.tokens or 0 for one in whole)
            else:
                tokens = sum(map(len, plainly(lm, prompts, decoding)))
            seconds, cpu = time.perf_counter() - started, time.process_time() - worked
            speed = {
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu, 2),
                "per_second": round(tokens / seconds, 1),
            }
            done.append(speed | {"tokens": tokens})
    sizes = {"prompts": len(prompts), "candidates": COUNT, "model": name, "threads": threads, "small": small}
    small_batches = sample(lm, prompts, decoding, COUNT, SEED, rows=BATCH)
    other = sum(one.token_ids != two.token_ids for one, two in zip(whole, small_batches, strict=True))
    return {"sizes": sizes, "check": {**check, "other_text_in_batches_of_16": other}, "runs": runs}


def model(small: bool) -> tuple[LanguageModel, str]:
    """SmolLM2 where the lab has it, else a thin random shape on bytes; and its name."""
    folder = default_home() / "lab" / "smollm2"
    if folder.is_dir() and not small:
        return load(folder), "SmolLM2-135M-Instruct"
    from benchmarks.speed.training import policy

    lm = policy(small=True)
    lm.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}\n{% endfor %}Assistant:"
    return lm, "two thin layers, random"


def plainly(lm: LanguageModel, prompts: Sequence[Prompt], decoding: Decoding, count: int = COUNT) -> list[list[int]]:
    """Token ids of `count` candidates a prompt, the end token included, by `generate` in batches of 16 rows."""
    rows = [prompt.text for prompt in prompts for _ in range(count)]
    texts = [lm.tokenizer.decode(lm.prompt_ids(text)) for text in rows]
    lm.tokenizer.padding_side = "left"
    chance = {"do_sample": False}
    if decoding.temperature:
        chance = {"do_sample": True, **{name: getattr(decoding, name) for name in ("temperature", "top_p", "top_k")}}
    ends, found = set(end_ids(lm)), []
    for start in range(0, len(texts), BATCH):
        batch = lm.tokenizer(texts[start : start + BATCH], add_special_tokens=False, padding=True, return_tensors="pt")
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        out = lm.model.generate(
            **given, **chance, max_new_tokens=decoding.max_new_tokens, pad_token_id=lm.tokenizer.pad_token_id
        )
        for row in out[:, batch.input_ids.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            found.append(row[: end + 1])
    return found


def agree(lm: LanguageModel, prompts: Sequence[Prompt], greedy: Decoding) -> dict[str, Any]:
    """Whether both give the same text for the most probable token each time."""
    import torch

    ids = [lm.prompt_ids(prompt.text) for prompt in prompts]
    ours = generate(lm, ids, [[torch.zeros(greedy.max_new_tokens)] for _ in ids], greedy)
    theirs = plainly(lm, prompts, greedy, count=1)
    ends = set(end_ids(lm))
    equal = [list(one[0].ids) == [t for t in two if t not in ends] for one, two in zip(ours, theirs, strict=True)]
    return {"greedy_prompts": len(equal), "equal": all(equal)}
