"""Whole round: sample, label, reference, train, evaluate; ours against the steps of SimPO's recipe scripts.

Their steps: one pass of sampling over all prompts for each candidate; pairs with equal texts left out; the reward model
on one candidate at a time; DPOTrainer with its defaults; completions of held-out prompts and their rewards. They sample
with vLLM; here it is `generate` in batches of 16. In bf16, ours samples from bf16 weights and trains under autocast.
Models are loaded before the clock starts, except our copy in bf16. Texts, and so pairs, differ by chance; the rows for
sampling, training and votes check that samplers, losses and rewards are equal. Source: princeton-nlp/SimPO,
on_policy_data_gen.
"""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.speed import models, roof, training, votes
from benchmarks.speed.sampling import COUNT, PROMPTS, SEED, decode, plainly
from benchmarks.speed.turns import Given, Run, clock, turns
from stagealign.data.records import Pair, Prompt
from stagealign.scoring.contest import Contest

ROUND, HELD_OUT = 32, 32
"""Numbers of training prompts and of evaluation prompts."""
PATH = "benchmarks.speed.rounds"


def measure(given: Given) -> dict[str, Any]:
    """Interleaved rounds of all sides."""
    prompts, held_out = (8, 2) if given.small else (ROUND, HELD_OUT)
    sizes = {"prompts": prompts, "held_out": held_out, "candidates": COUNT}
    sides = {name: (f"{PATH}:side", {"peer": name == "recipe scripts", **sizes}) for name in ("ours", "recipe scripts")}
    if training.half_products(given.device):
        sides["ours bf16"] = (f"{PATH}:side", {"peer": False, "bf16": True, **sizes})
    return {"sizes": sizes, "check": {"see": "sampling, train-135m, votes-reward"}, "runs": turns(sides, given)}


def side(given: Given, peer: bool, prompts: int, held_out: int, candidates: int, bf16: bool = False) -> Run:
    """Time of one round and of its parts, and its useful tokens and arithmetic."""
    lm, _ = models.chat(given)
    oracle, _ = models.reward(given)
    reference = copy.deepcopy(lm.model) if peer else None
    train, rest = PROMPTS[:prompts], PROMPTS[-held_out:]
    steps = _Recipe(given, lm, oracle, reference) if peer else _Ours(given, lm, oracle, bf16)
    parts, took = {}, {"seconds": 0.0, "cpu_seconds": 0.0}

    def note(name: str, spent: dict[str, float]) -> None:
        parts[name] = round(spent["seconds"], 2)
        for key in took:
            took[key] += spent[key]

    with clock(given.device) as spent:
        texts = steps.sample(train, candidates)
    note("sample", spent)
    with clock(given.device) as spent:
        pairs = labelled(train, texts, steps.score(train, texts))
    note("label", spent)
    with clock(given.device) as spent, tempfile.TemporaryDirectory() as folder:
        steps.train(pairs, folder)
    note("reference and train", spent)
    with clock(given.device) as spent:
        written = steps.sample(rest, 1)
        scores = steps.score(rest, written)
    note("evaluate", spent)
    assert all(len(of_prompt) == 1 for of_prompt in scores)
    useful = _useful(lm, oracle, [*zip(train, texts, strict=True), *zip(rest, written, strict=True)], pairs)
    return {**took, "work": 1, "parts": parts, "pairs": len(pairs), **useful}


def _useful(lm: Any, oracle: Any, sampled: Sequence[tuple[Prompt, Sequence[str]]], pairs: Sequence[Pair]) -> Run:
    """Tokens that were sampled, read by the reward model and trained on; and their least arithmetic."""
    from stagealign.train.reference import tokenize

    prompts = sum(len(lm.prompt_ids(prompt.text)) for prompt, _ in sampled)
    texts = [text for _, own in sampled for text in own]
    written = sum(len(lm.tokenizer(text).input_ids) for text in texts)
    read = sum(len(oracle.tokenizer(text).input_ids) for text in texts)
    trained = tokenize(lm, pairs, training.MAX_LENGTH)
    flops = roof.writing_flops(lm.model, prompts, written) + roof.reading_flops(oracle.model, read)
    flops += roof.pair_flops(lm.model, trained, passes=4)
    return {"tokens": written + read + sum(pair.tokens for pair in trained), "flops": flops}


def labelled(
    prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[Pair]:
    """Pair of the better and the worse text of each prompt; prompts with equal or empty texts are left out."""
    pairs = []
    for prompt, (first, second), (reward, other) in zip(prompts, texts, scores, strict=True):
        if first != second and first.strip() and second.strip():
            chosen, rejected = (first, second) if reward > other else (second, first)
            pairs.append(Pair(prompt.text, chosen, rejected, "on", abs(reward - other)))
    return pairs


class _Ours:
    """Steps of this project."""

    def __init__(self, given: Given, lm: Any, oracle: Any, bf16: bool):
        self.given, self.lm, self.oracle, self.bf16 = given, lm, oracle, bf16

    def sample(self, prompts: Sequence[Prompt], count: int) -> list[list[str]]:
        from stagealign.policy.lm import LanguageModel
        from stagealign.policy.sample import sample

        texts: dict[str, list[str]] = {}
        lm = LanguageModel(copy.deepcopy(self.lm.model).bfloat16(), self.lm.tokenizer) if self.bf16 else self.lm
        for candidate in sample(lm, prompts, decode(self.given.small), count, SEED):
            texts.setdefault(candidate.prompt, []).append(candidate.completion)
        return [texts[prompt.text] for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [Contest(prompt.text, tuple(own), ()) for prompt, own in zip(prompts, texts, strict=True)]
        return [list(judged.on) for judged in self.oracle.judge(asked)]

    def train(self, pairs: Sequence[Pair], folder: str) -> None:
        training.ours(self.lm, pairs, folder, self.given.device, training.Way(self.bf16))


class _Recipe:
    """Steps of the recipe's scripts."""

    def __init__(self, given: Given, lm: Any, oracle: Any, reference: Any):
        self.given, self.lm, self.oracle, self.reference = given, lm, oracle, reference

    def sample(self, prompts: Sequence[Prompt], count: int) -> list[list[str]]:
        passes = [plainly(self.lm, prompts, decode(self.given.small), 1) for _ in range(count)]
        texts = [self.lm.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in passes]
        return [[text.strip() for text in own] for own in zip(*texts, strict=True)]

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[votes.plainly(self.oracle, [text])[0] for text in own] for own in texts]

    def train(self, pairs: Sequence[Pair], folder: str) -> None:
        asked = [self.lm.tokenizer.decode(self.lm.prompt_ids(pair.prompt)) for pair in pairs]  # with the chat template
        rows = [Pair(text, pair.chosen, pair.rejected, "on", 0.0) for text, pair in zip(asked, pairs, strict=True)]
        training.trainer(self.lm, rows, self.reference, folder, self.given.device).train()
        self.lm.model.activation_checkpointing_disable()  # as the next script loads it
        self.lm.model.eval()
