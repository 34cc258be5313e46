"""Sampling: ours against transformers' `generate`, one prompt at a time and in plain batches, two candidates a prompt.

Same weights, prompts, decoding and threads. Random numbers differ (ours has one stream for each candidate), so speed is
counted in tokens a second; a check compares greedy texts first. One prompt at a time is slow, and its cost depends
little on the prompt, so it takes fewer of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.speed import models, roof
from benchmarks.speed.turns import Given, Run, child, clock, turns
from stagealign.data.records import Prompt
from stagealign.grid.registry import scale
from stagealign.grid.spec import Decoding
from stagealign.policy.lm import LanguageModel, end_ids

COUNT, BATCH, SEED = 2, 16, 0
ALONE = 16
"""Number of prompts in one turn of the side `one prompt at a time`."""
FIRST = (
    "The Silent", "A Distant", "Midnight", "The Last", "Broken", "The Golden", "Winter", "An Ordinary", "The Hidden",
    "A Second", "Paper", "The Long", "Crimson", "The Other", "Hollow", "A Gentle",
)  # fmt: skip
SECOND = (
    "River", "Promise", "Station", "Garden of Stones", "Heart", "Summer", "Road Home", "Affair", "Harbour", "Letter",
    "Machine", "Winter Sky", "Stranger", "Orchard", "Machine Age", "Sister",
)  # fmt: skip
PROMPTS = [
    Prompt(f'Write a one-sentence review of the film "{first} {second}".', "train")
    for first in FIRST
    for second in SECOND
]
PATH = "benchmarks.speed.sampling"


def measure(given: Given) -> dict[str, Any]:
    """Check and interleaved runs of all sides on 256 prompts."""
    prompts, alone = (8, 2) if given.small else (len(PROMPTS), ALONE)
    checked = child(f"{PATH}:check", given, prompts=4)
    assert checked["equal"], "greedy texts of the two sides differ, so they cannot be compared"
    sides = {
        "ours": (f"{PATH}:side", {"side": "ours", "prompts": prompts}),
        "batches": (f"{PATH}:side", {"side": "batches", "prompts": prompts}),
        "one prompt at a time": (f"{PATH}:side", {"side": "alone", "prompts": alone}),
    }
    sizes = {"model": checked.pop("model"), "prompts": prompts, "candidates": COUNT, "one_at_a_time_prompts": alone}
    return {"sizes": sizes, "check": checked, "runs": turns(sides, given)}


def decode(small: bool) -> Decoding:
    """The lab's decoding."""
    return Decoding(max_new_tokens=8) if small else scale("lab").decoding


def side(given: Given, side: str, prompts: int) -> Run:
    """Time of one run, and the tokens that it sampled."""
    from stagealign.policy.sample import sample

    lm, _ = models.chat(given)
    decoding = decode(given.small)
    asked = PROMPTS[:: len(PROMPTS) // prompts][:prompts]
    with clock(given.device) as took:
        if side == "ours":
            tokens = sum(candidate.tokens or 0 for candidate in sample(lm, asked, decoding, COUNT, SEED))
        else:
            tokens = sum(map(len, plainly(lm, asked, decoding, COUNT, COUNT if side == "alone" else BATCH)))
    prompt = sum(len(lm.prompt_ids(each.text)) for each in asked)
    return {**took, "work": tokens, "tokens": tokens, "flops": roof.writing_flops(lm.model, prompt, tokens)}


def plainly(
    lm: LanguageModel, prompts: Sequence[Prompt], decoding: Decoding, count: int = COUNT, batch: int = BATCH
) -> list[list[int]]:
    """Token ids of `count` candidates a prompt, the end token included, by `generate` on `batch` rows at a time."""
    rows = [prompt.text for prompt in prompts for _ in range(count)]
    texts = [lm.tokenizer.decode(lm.prompt_ids(text)) for text in rows]
    lm.tokenizer.padding_side = "left"
    chance: dict[str, Any] = {"do_sample": False}
    if decoding.temperature:
        chance = {"do_sample": True, **{name: getattr(decoding, name) for name in ("temperature", "top_p", "top_k")}}
    ends, completions = set(end_ids(lm)), []
    for start in range(0, len(texts), batch):
        some = lm.tokenizer(texts[start : start + batch], add_special_tokens=False, padding=True, return_tensors="pt")
        words = {name: getattr(some, name).to(lm.model.device) for name in ("input_ids", "attention_mask")}
        out = lm.model.generate(
            **words, **chance, max_new_tokens=decoding.max_new_tokens, pad_token_id=lm.tokenizer.pad_token_id
        )
        for row in out[:, some.input_ids.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            completions.append(row[: end + 1])
    return completions


def check(given: Given, prompts: int) -> Run:
    """Whether greedy texts of all sides are equal, and how many of our samples differ in other batches."""
    import torch

    from stagealign.policy.sample import generate, sample

    lm, name = models.chat(given)
    asked, decoding = PROMPTS[:prompts], decode(given.small)
    greedy = replace(decoding, temperature=0.0)
    ids = [lm.prompt_ids(prompt.text) for prompt in asked]
    ours = generate(lm, ids, [[torch.zeros(greedy.max_new_tokens)] for _ in ids], greedy)
    ends = set(end_ids(lm))
    equal = []
    for batch in (1, BATCH):
        theirs = plainly(lm, asked, greedy, 1, batch)
        equal += [list(a[0].ids) == [t for t in b if t not in ends] for a, b in zip(ours, theirs, strict=True)]
    whole, parts = (sample(lm, asked, decoding, COUNT, SEED, rows=rows) for rows in (256, 2))
    other = sum(big.token_ids != small.token_ids for big, small in zip(whole, parts, strict=True))
    return {"model": name, "greedy_texts": len(equal), "equal": all(equal), "other_text_in_other_batches": other}
