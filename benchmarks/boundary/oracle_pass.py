"""PairRM's pass over prompts with four candidates: ours against the loop that the checkpoint's README shows.

Both compute the same: each of a prompt's six pairs in both orders, twelve rows for each prompt, on the same weights,
text and threads. The README pads every row to 2,048 tokens; we run its code one pair at a time, as its users do. Its
time for a row is independent of the text, so few rows suffice. Ours depends on the text, so it is measured on whole
prompts. A third side is the README's loop without padding: it differs from ours only by batching by length.

The published weights are on the hub only; STAGEALIGN_PAIRRM names a folder of them. Without it, weights are random, in
the shape of half a DeBERTa-v3-xsmall (6 of its 12 layers, width 384, 6 heads), and the tokenizer is a unigram one of
at most 16,000 pieces, trained on the measured text. Speed does not depend on the weights' values.
"""

import copy
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.boundary.machine import hardware
from benchmarks.boundary.recorded import data_folder
from stagealign.scoring.contest import Contest
from stagealign.store.home import default_home

ASKED, PROMPTS, SEED, TOLERANCE = 5.0, 2000, 0, 1e-4
SIZES = {"reviews": 24, "answers": 6}
"""Kind of text -> prompts in one turn; an answer is ten times as long as a review."""
README_ROWS = 2
"""Rows of the README's loop in one turn."""
ROWS_A_PROMPT = 12
WORDS = ("a", "slow", "film", "of", "rain", "and", "long", "roads", "where", "nobody", "says", "what", "they", "want")


def measure(repeats: int, threads: int, sizes: Mapping[str, int] = SIZES) -> list[dict[str, Any]]:
    """One row for each kind of text: seconds of each side, scaled from some prompts to 2,000, and their ratio."""
    import torch

    torch.set_num_threads(threads)
    return [_measure(name, *contests(name, count), repeats, threads) for name, count in sizes.items()]


def contests(name: str, count: int) -> tuple[list[Contest], str]:
    """Prompts with four candidates of real text, or of random words if it is absent; and a description of the text."""
    real = {"reviews": _reviews, "answers": _answers}[name](count)
    if real is not None:
        return real
    rng = random.Random(SEED)
    long = 12 if name == "reviews" else 250
    lengths = [rng.randint(long // 2, 2 * long) for _ in range(4 * count)]
    texts = iter([" ".join(rng.choices(WORDS, k=length)) for length in lengths])
    synthetic = [_contest(" ".join(rng.choices(WORDS, k=12)), [next(texts) for _ in range(4)]) for _ in range(count)]
    return synthetic, f"random words, {long // 2} to {2 * long} a candidate"


def _contest(prompt: str, texts: Sequence[str]) -> Contest:
    return Contest(prompt, tuple(texts[:2]), tuple(texts[2:]))


def _reviews(count: int) -> tuple[list[Contest], str] | None:
    """Films with four human reviews each, from the lab's store; None if it has none."""
    file = default_home() / "lab" / "prompts" / "reviews.jsonl"
    if not file.is_file():
        return None
    films: dict[str, list[str]] = {}
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            films.setdefault(row["prompt"], []).append(row["text"])
    full = [(prompt, texts[:4]) for prompt, texts in films.items() if len(set(texts[:4])) == 4]
    return [
        _contest(*film) for film in random.Random(SEED).sample(full, count)
    ], "one-sentence film reviews (the lab's)"


def _answers(count: int) -> tuple[list[Contest], str] | None:
    """AlpacaEval instructions with the answers of four models; None without the data."""
    folder = data_folder()
    if isinstance(folder, str) or not (folder / "outputs.parquet").is_file():
        return None
    import pandas as pd

    asked = pd.read_parquet(folder / "instructions.parquet").set_index("prompt_index")["instruction"]
    outputs = pd.read_parquet(folder / "outputs.parquet")
    answers = outputs.pivot(index="prompt_index", columns="generator", values="output")
    models = sorted(answers.columns)[:: len(answers.columns) // 4][:4]
    full = answers[models].dropna()
    rows = random.Random(SEED).sample(list(full.index), count)
    return [_contest(asked[i], list(full.loc[i])) for i in rows], f"AlpacaEval answers of {', '.join(models)}"


def _measure(name: str, given: list[Contest], text: str, repeats: int, threads: int) -> dict[str, Any]:
    oracle, weights = open_oracle(given)
    lengths = [len(oracle._tokens(each.prompt, [*each.on, *each.off]).row(0, 2)) for each in given]
    peer = published(oracle)
    check = agree(oracle, peer, given[0])
    assert check["largest_difference"] < TOLERANCE, (
        f"the two sides give different logits, so they cannot be compared: {check}"
    )
    # One row of each prompt, so that their lengths are representative.
    some = [row for place, contest in enumerate(given) for row in rows(contest)[place % ROWS_A_PROMPT :][:1]]
    sides: dict[str, tuple[Callable[[], Any], float]] = {
        "ours": (lambda: list(oracle.judge(given)), len(given)),
        "readme": (lambda: [readme(peer, *row) for row in rows(given[0])[:README_ROWS]], README_ROWS / ROWS_A_PROMPT),
        "readme without padding": (
            lambda: [readme(peer, *row, pad=False) for row in some],
            len(some) / ROWS_A_PROMPT,
        ),
    }
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (work, prompts) in sides.items():
            started, worked = time.perf_counter(), time.process_time()
            work()
            seconds, cpu = time.perf_counter() - started, time.process_time() - worked
            runs[side].append({"seconds": seconds / prompts * PROMPTS, "cpu_seconds": cpu / prompts * PROMPTS})
    ratios = {side: ratio(runs[side], runs["ours"]) for side in ("readme", "readme without padding")}
    return {
        "text": name,
        "what": text,
        "weights": weights,
        "prompts_measured": len(given),
        "prompts": PROMPTS,
        "rows_a_prompt": ROWS_A_PROMPT,
        "median_row_tokens": median(lengths),
        "longest_row_tokens": max(lengths),
        "asked": ASKED,
        "check": check,
        "ratio": ratios["readme"],
        "ratio_without_padding": ratios["readme without padding"],
        "runs": {side: [{k: round(v, 1) for k, v in run.items()} for run in done] for side, done in runs.items()},
        "hardware": hardware(threads),
    }


def ratio(theirs: Sequence[dict[str, float]], ours: Sequence[dict[str, float]]) -> dict[str, float]:
    """Their time over ours in the same turn: median, least, most; and the median of processor time."""
    turns = list(zip(theirs, ours, strict=True))
    time = [their["seconds"] / our["seconds"] for their, our in turns]
    work = [their["cpu_seconds"] / our["cpu_seconds"] for their, our in turns]
    values = {"median": median(time), "least": min(time), "most": max(time), "processor": median(work)}
    return {name: round(value, 2) for name, value in values.items()}


def rows(contest: Contest) -> list[tuple[str, str, str]]:
    """(prompt, first, second) of each pair in both orders."""
    texts = (*contest.on, *contest.off)
    return [(contest.prompt, a, b) for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]


def readme(oracle: Any, prompt: str, first: str, second: str, pad: bool = True) -> float:
    """One row's logit as the README computes it: encode with its limits, pad to all tokens, one forward.

    Source: README of llm-blender/PairRM-hf, reimplemented.
    """
    import torch

    from stagealign.oracle.pairrm import ALL_TOKENS, PROMPT_TOKENS

    encode = oracle.tokenizer.encode
    ids = encode("<|source|>" + prompt, max_length=PROMPT_TOKENS, truncation=True)
    room = (ALL_TOKENS - len(ids)) // 2
    for mark, text in (("<|candidate1|>", first), ("<|candidate2|>", second)):
        ids = ids + encode(mark + text, max_length=room, truncation=True)
    settings = {"padding": "max_length", "max_length": ALL_TOKENS} if pad else {}
    batch = oracle.tokenizer.pad({"input_ids": [ids]}, return_tensors="pt", **settings)
    with torch.inference_mode():
        device = oracle.model.device
        return float(oracle.model(batch["input_ids"].to(device), batch["attention_mask"].to(device)))


def published(oracle: Any) -> Any:
    """The oracle with transformers' own attention, as the README's loop has it."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    from stagealign.oracle.disentangled import ReadingAttention

    peer = copy.copy(oracle)
    peer.model = copy.deepcopy(oracle.model)
    for module in peer.model.modules():
        if type(module) is ReadingAttention:
            module.__class__ = DisentangledSelfAttention
    return peer


def agree(oracle: Any, peer: Any, contest: Contest) -> dict[str, float]:
    """Largest difference between the two sides' logits on some rows, and the largest logit."""
    asked = rows(contest)[:README_ROWS]
    ours, theirs = oracle.logits(asked), [readme(peer, *row) for row in asked]
    differences = [abs(our - their) for our, their in zip(ours, theirs, strict=True)]
    return {"rows": len(asked), "largest_difference": max(differences), "largest_logit": max(map(abs, ours))}


def open_oracle(given: Sequence[Contest]) -> tuple[Any, str]:
    """Oracle of the checkpoint that STAGEALIGN_PAIRRM names, else of random weights; and the name of the weights."""
    from stagealign.oracle import pairrm

    folder = os.environ.get("STAGEALIGN_PAIRRM")
    if folder:
        return pairrm.load(folder), "llm-blender/PairRM-hf"
    import torch
    from transformers import DebertaV2Config

    tokenizer = train_tokenizer([text for each in given for text in (each.prompt, *each.on, *each.off)])
    torch.manual_seed(SEED)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
        relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, max_position_embeddings=512,
        initializer_range=0.05, n_tasks=1, drop_out=0.05,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in pairrm.MARKS.items()},
    )  # fmt: skip
    model = pairrm.PairRM(config).eval()
    return pairrm.PairRMOracle(model, tokenizer, "random"), "random, 6 of the 12 layers of DeBERTa-v3-xsmall"


def train_tokenizer(texts: Sequence[str]) -> Any:
    """DeBERTa tokenizer with PairRM's marks, trained on these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaV2Tokenizer

    from stagealign.oracle.pairrm import MARKS

    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=16_000, special_tokens=specials, unk_token="[UNK]", show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    pieces = [tuple(piece) for piece in json.loads(raw.to_str())["model"]["vocab"]]
    tokenizer = DebertaV2Tokenizer(vocab=[*pieces, ("[MASK]", 0.0)], unk_id=3)
    tokenizer.add_tokens([*MARKS.values(), "<|candidate|>"])
    return tokenizer
