"""A whole round: sample, label, reference, train, evaluate; ours against the order of work of SimPO's recipe scripts.

Theirs, with TRL and `generate`: a pass of sampling over all prompts for each candidate, pairs whose texts are equal
left out, the reward model on one candidate at a time, DPOTrainer with its defaults, completions of held-out prompts and
the reward of each. Where they sample with vLLM, here it is `generate` in batches of 16. In bf16 ours samples from bf16
weights and trains under autocast. Models are loaded before the clock runs; the copy in bf16 is made on it. Texts differ
by chance, so pairs do; that samplers, losses and rewards are the same is what the rows of each check. Source of the
order: princeton-nlp/SimPO, on_policy_data_gen.
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
"""Prompts that are trained on, and prompts that evaluate."""
PATH = "benchmarks.speed.rounds"


def measure(given: Given) -> dict[str, Any]:
    """Interleaved rounds."""
    prompts, held_out = (8, 2) if given.small else (ROUND, HELD_OUT)
    sizes = {"prompts": prompts, "held_out": held_out, "candidates": COUNT}
    sides = {name: (f"{PATH}:side", {"peer": name == "recipe scripts", **sizes}) for name in ("ours", "recipe scripts")}
    if training.half_products(given.device):
        sides["ours bf16"] = (f"{PATH}:side", {"peer": False, "bf16": True, **sizes})
    return {"sizes": sizes, "check": {"see": "sampling, train-135m, votes-reward"}, "runs": turns(sides, given)}


def side(given: Given, peer: bool, prompts: int, held_out: int, candidates: int, bf16: bool = False) -> Run:
    """One round's time, that of its parts, and its useful tokens and arithmetic."""
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
    assert all(len(one) == 1 for one in scores)
    useful = _useful(lm, oracle, [*zip(train, texts, strict=True), *zip(rest, written, strict=True)], pairs)
    return {**took, "work": 1, "parts": parts, "pairs": len(pairs), **useful}


def _useful(lm: Any, oracle: Any, sampled: Sequence[tuple[Prompt, Sequence[str]]], pairs: Sequence[Pair]) -> Run:
    """Tokens that were written, read by the reward model, and trained on; and what they need at least."""
    from stagealign.train.reference import tokenize

    prompts = sum(len(lm.prompt_ids(prompt.text)) for prompt, _ in sampled)
    texts = [text for _, own in sampled for text in own]
    written = sum(len(lm.tokenizer(text).input_ids) for text in texts)
    read = sum(len(oracle.tokenizer(text).input_ids) for text in texts)
    trained = tokenize(lm, pairs, training.MAX_LENGTH)
    flops = roof.writing_flops(lm.model, prompts, written) + roof.reading_flops(oracle.model, read)
    flops += roof.pair_flops(lm.model, trained, passes=4)
    return {"tokens": written + read + sum(one.tokens for one in trained), "flops": flops}


def labelled(
    prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[Pair]:
    """A prompt's better text against its worse; equal texts teach nothing and are left out."""
    pairs = []
    for prompt, (one, two), (first, second) in zip(prompts, texts, scores, strict=True):
        if one != two and one.strip() and two.strip():
            chosen, rejected = (one, two) if first > second else (two, one)
            pairs.append(Pair(prompt.text, chosen, rejected, "on", abs(first - second)))
    return pairs


class _Ours:
    """This project's rooms."""

    def __init__(self, given: Given, lm: Any, oracle: Any, bf16: bool):
        self.given, self.lm, self.oracle, self.bf16 = given, lm, oracle, bf16

    def sample(self, prompts: Sequence[Prompt], count: int) -> list[list[str]]:
        from stagealign.policy.lm import LanguageModel
        from stagealign.policy.sample import sample

        found: dict[str, list[str]] = {}
        lm = LanguageModel(copy.deepcopy(self.lm.model).bfloat16(), self.lm.tokenizer) if self.bf16 else self.lm
        for one in sample(lm, prompts, decode(self.given.small), count, SEED):
            found.setdefault(one.prompt, []).append(one.completion)
        return [found[prompt.text] for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [Contest(prompt.text, tuple(own), ()) for prompt, own in zip(prompts, texts, strict=True)]
        return [list(one.on) for one in self.oracle.judge(asked)]

    def train(self, pairs: Sequence[Pair], folder: str) -> None:
        training.ours(self.lm, pairs, folder, self.given.device, training.Way(self.bf16))


class _Recipe:
    """The recipe's scripts, one after the other."""

    def __init__(self, given: Given, lm: Any, oracle: Any, reference: Any):
        self.given, self.lm, self.oracle, self.reference = given, lm, oracle, reference

    def sample(self, prompts: Sequence[Prompt], count: int) -> list[list[str]]:
        passes = [plainly(self.lm, prompts, decode(self.given.small), 1) for _ in range(count)]
        texts = [self.lm.tokenizer.batch_decode(one, skip_special_tokens=True) for one in passes]
        return [[text.strip() for text in own] for own in zip(*texts, strict=True)]

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[votes.plainly(self.oracle, [text])[0] for text in own] for own in texts]

    def train(self, pairs: Sequence[Pair], folder: str) -> None:
        asked = [self.lm.tokenizer.decode(self.lm.prompt_ids(pair.prompt)) for pair in pairs]  # with the chat template
        rows = [Pair(text, pair.chosen, pair.rejected, "on", 0.0) for text, pair in zip(asked, pairs, strict=True)]
        training.trainer(self.lm, rows, self.reference, folder, self.given.device).train()
        self.lm.model.activation_checkpointing_disable()  # as the next script finds it, loaded anew: sampling is cached
        self.lm.model.eval()
