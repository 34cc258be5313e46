"""Labelling and boundary votes over prompts with four candidates: PairRM's pass, and a reward model's.

PairRM's row is `benchmarks.boundary.oracle_pass`, against the loop of its checkpoint's README. The reward model's peers
score one pair at a time (two texts in a batch, four votes for each prompt) and one candidate at a time. Speed is
counted in prompts a second, so slow peers take fewer prompts.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.speed import models, roof
from benchmarks.speed.turns import Given, Run, child, clock, turns
from stagealign.scoring.contest import Contest

CONTESTS, FEWER, TOLERANCE = 200, 20, 1e-4
PATH = "benchmarks.speed.votes"


def pairrm(given: Given, text: str) -> dict[str, Any]:
    """Row of PairRM on one kind of text, measured by the boundary's benchmark."""
    measured = child(f"{PATH}:passes", given, text=text)
    work = measured["prompts"]
    names = {"ours": "ours", "readme": "README", "readme without padding": "README without padding"}
    runs = {names[side]: [{**run, "work": work} for run in done] for side, done in measured["runs"].items()}
    kept = ("what", "weights", "prompts", "prompts_measured", "rows_a_prompt", "median_row_tokens")
    return {"sizes": {name: measured[name] for name in kept}, "check": measured["check"], "runs": runs}


def passes(given: Given, text: str) -> Run:
    """Result of the oracle pass in this process."""
    import torch

    from benchmarks.boundary import oracle_pass

    if given.device == "cuda":
        torch.set_default_device("cuda")
    prompts = 1 if given.small else oracle_pass.SIZES[text]
    measured: Run = oracle_pass.measure(given.repeats, given.threads, {text: prompts})[0]
    return measured


def reward(given: Given) -> dict[str, Any]:
    """Row of a reward model: check of equal scores, and interleaved runs."""
    every, fewer = (4, 2) if given.small else (CONTESTS, FEWER)
    checked = child(f"{PATH}:check", given, prompts=fewer)
    assert checked["largest_difference"] < TOLERANCE, (
        f"scores of the two sides differ, so they cannot be compared: {checked}"
    )
    sides = {
        "ours": (f"{PATH}:side", {"side": "ours", "prompts": every}),
        "one pair at a time": (f"{PATH}:side", {"side": "pair", "prompts": fewer}),
        "one candidate at a time": (f"{PATH}:side", {"side": "candidate", "prompts": fewer}),
    }
    sizes = {name: checked.pop(name) for name in ("model", "text")} | {"prompts": every, "peers_prompts": fewer}
    return {"sizes": sizes, "check": checked, "runs": turns(sides, given)}


def contests(count: int) -> tuple[list[Contest], str]:
    """Prompts with four candidates, and a description of them."""
    from benchmarks.boundary import oracle_pass

    return oracle_pass.contests("reviews", count)


def side(given: Given, side: str, prompts: int) -> Run:
    """Time of one pass."""
    oracle, _ = models.reward(given)
    asked, _ = contests(prompts)
    with clock(given.device) as took:
        if side == "ours":
            list(oracle.judge(asked))
        elif side == "pair":
            for contest in asked:
                for ours in contest.on:
                    for theirs in contest.off:
                        plainly(oracle, [ours, theirs])
        else:
            for contest in asked:
                for text in (*contest.on, *contest.off):
                    plainly(oracle, [text])
    texts = [text for contest in asked for text in (*contest.on, *contest.off)]
    tokens = sum(len(oracle.tokenizer(text).input_ids) for text in texts)
    return {**took, "work": prompts, "tokens": tokens, "flops": roof.reading_flops(oracle.model, tokens)}


def plainly(oracle: Any, texts: Sequence[str]) -> list[float]:
    """Scores of a few completions in one batch, as a model card shows it."""
    import torch

    batch = oracle.tokenizer(
        list(texts), truncation=True, max_length=oracle.max_length, padding=True, return_tensors="pt"
    )
    words = {name: batch[name].to(oracle.model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        scores: list[float] = oracle.model(**words).logits[:, 0].tolist()
    return scores


def check(given: Given, prompts: int) -> Run:
    """Largest difference between our scores and those of one pair at a time."""
    oracle, name = models.reward(given)
    asked, text = contests(prompts)
    ours = [score for judged in oracle.judge(asked) for score in (*judged.on, *judged.off)]
    theirs = [score for contest in asked for pair in (contest.on, contest.off) for score in plainly(oracle, pair)]
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {"model": name, "text": text, "scores": len(ours), "largest_difference": largest}
