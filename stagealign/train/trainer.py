"""The trainer: policy + pairs + loss -> policy. One loop for every method, based on transformers.Trainer.

Values that are constant in a round are computed once: the reference log-probs of a set of pairs, which all methods,
betas, learning rates and cells share, and the output of the frozen layers.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stagealign.base.errors import BadNumbers, CannotRun
from stagealign.grid.spec import Lora, Method
from stagealign.policy.dropout import without_dropout
from stagealign.policy.forward import layout_of
from stagealign.policy.layers import freeze_below, top_of
from stagealign.policy.lm import LanguageModel
from stagealign.policy.logps import pack, to_device
from stagealign.stats.finite import prompts_named
from stagealign.train.adapters import add_adapters
from stagealign.train.batches import NO_PAIR, BatchOrder, EpochOf, PairNumbers
from stagealign.train.launch import cut
from stagealign.train.losses import Constants, Logps, log_ratio_margin, loss_of
from stagealign.train.packed_forward import packed_forward
from stagealign.train.reference import TrainingSet, token_offsets
from stagealign.train.resume import CHECKPOINT_STEPS, WHOLE, last_checkpoint, remove_checkpoints
from stagealign.train.sharding import allow_fsdp_on_cpu, keep_arithmetic, model_split


@dataclass(frozen=True)
class RoundSettings:
    """Settings of a round; fields up to `peft` are part of identity, fields from `micro_batch` on are not."""

    learning_rate: float
    batch: int
    epochs: int
    warmup: float
    schedule: str
    max_grad_norm: float
    dtype: str
    order_seed: int
    trained_layers: int | None = None
    peft: Lora | None = None
    micro_batch: int | None = None
    """Pairs in one forward of one process; None chooses it (see `launch.cut`)."""
    activation_checkpointing: bool = False
    checkpoint_steps: int = CHECKPOINT_STEPS
    resume: bool = True
    """True if training resumes from its own checkpoint."""
    gather: bool = True
    """True if the first process collects the weights of a model that is split over processes."""


NOTED = ("pairs", "pair_loss", "margin", "accuracy", "kl")
"""Quantities that are summed over the pairs of a step."""


class PreferenceTrainer(Trainer):
    """transformers.Trainer whose loss is one of `losses.LOSSES` on packed pairs."""

    def __init__(self, data: TrainingSet, method: Method, settings: RoundSettings, **given: Any):
        super().__init__(train_dataset=PairNumbers(len(data.tokens)), data_collator=self.collate, **given)
        self.model_accepts_loss_kwargs = False
        self.data, self.settings = data, settings
        self.loss = loss_of(method.form)
        self.constants = Constants(method.beta, method.delta, method.sft_weight)
        self.offsets = token_offsets(data.tokens)
        self.last_batch = len(data.tokens) % settings.batch or settings.batch
        self.shortest = min(range(len(data.tokens)), key=lambda i: data.tokens[i].tokens)
        multiple = self.args.per_device_train_batch_size * self.args.world_size
        self.order = BatchOrder(data.tokens, settings.batch, settings.order_seed, multiple)
        self.layout = layout_of(self.model, settings.dtype)
        self.add_callback(EpochOf(self.order))
        self.sums = dict.fromkeys(NOTED, 0.0)
        self.step_places: list[int] = []

    def collate(self, places: list[int]) -> dict[str, Tensor]:
        """Inputs of one forward: the pairs' indices."""
        return {"places": torch.tensor(places)}

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the mean loss over the global batch, times micro-batches and processes.

        The Trainer divides by the number of micro-batches, and averaging of gradients divides by the processes.
        """
        places = [place for place in inputs["places"].tolist() if place != NO_PAIR]
        counts = bool(places)
        places = places or [self.shortest]  # a process without pairs still takes part in every forward
        self.step_places += places if counts else []
        device = self.args.device
        prefixed = self.settings.dtype == "float32"
        packed = to_device(pack([self.data.tokens[i] for i in places], self.layout, prefixed), device)
        trunk = self.data.trunk_of(places, self.offsets)
        policy = model(packed, None if trunk is None else trunk.to(device)).float()
        reference = self.data.reference[places].to(device)
        lengths = packed.lengths.view(-1, 2)
        logps = Logps(*policy.T, *reference.T, *lengths.T)
        losses = self.loss(logps, self.constants)
        if counts:
            self._note(logps, losses)
        share = losses.sum() / self._global_batch() * counts
        return share * self.current_gradient_accumulation_steps * self.args.world_size

    def _global_batch(self) -> int:
        """Number of pairs in the current global batch; the last of an epoch may be smaller."""
        steps = -(-len(self.data.tokens) // self.settings.batch)
        return self.last_batch if (self.state.global_step + 1) % steps == 0 else self.settings.batch

    def _note(self, logps: Logps, losses: Tensor) -> None:
        """Adds one micro-batch to the sums for the next log line. Raises BadNumbers for a value that is not finite."""
        with torch.no_grad():
            margin = log_ratio_margin(logps)
            self._check(losses, "the loss")
            self._check(margin, "the margin")  # the hinge loss of an infinite margin is 0
            shift = logps.reference_chosen - logps.policy_chosen + logps.reference_rejected - logps.policy_rejected
            noted = {
                "pairs": float(len(losses)),
                "pair_loss": losses.sum().item(),
                "margin": self.constants.beta * margin.sum().item(),
                "accuracy": (margin > 0).sum().item(),
                "kl": shift.sum().item() / 2,
            }
        for name, value in noted.items():
            self.sums[name] += value

    def _check(self, values: Tensor, what: str) -> None:
        """Raises BadNumbers, naming step and prompts, if one of the last micro-batch's `values` is not finite."""
        if not torch.isfinite(values).all():
            places = self.step_places[-len(values) :]
            self._stop(
                what, [place for place, value in zip(places, values.tolist(), strict=True) if not isfinite(value)]
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Norm of the gradient, checked before the weights are updated. Raises BadNumbers if it is not finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.world_size == 1 and not isfinite(norm):  # with several processes, each knows only its own pairs
            self._stop("the gradient", self.step_places)
        self.step_places = []
        return norm

    def _stop(self, what: str, places: Sequence[int]) -> None:
        names = [self.data.prompts[place] if self.data.prompts else f"of pair {place}" for place in places]
        kept = last_checkpoint(Path(self.args.output_dir))
        saved = f"the last good checkpoint stays in {kept}" if kept else "no weight was written"
        raise BadNumbers(
            f"step {self.state.global_step + 1}: {what} is not finite; lower the learning rate "
            f"({self.settings.learning_rate}) or check {prompts_named(list(dict.fromkeys(names)))}; {saved}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = torch.tensor([self.sums[name] for name in NOTED], dtype=torch.float64, device=self.args.device)
        sums = self.accelerator.reduce(sums, "sum")
        if sums[0]:
            means = (sums / sums[0]).tolist()
            logs |= {name: round(mean, 6) for name, mean in zip(NOTED[1:], means[1:], strict=True)}
        self.sums = dict.fromkeys(NOTED, 0.0)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint, marks it as complete, and removes earlier ones; order is by step, not time."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        scratch = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        (scratch / name / WHOLE).touch()
        remove_checkpoints(scratch, but=name)


def align(
    lm: LanguageModel, data: TrainingSet, method: Method, settings: RoundSettings, scratch: Path
) -> list[dict[str, float]]:
    """Trains the policy in place; returns one entry a step: step, loss, margin (beta x nats), accuracy, grad_norm, kl.

    `kl` is the mean of reference minus policy log-prob of the batch's completions, in nats a completion: an estimate of
    KL(reference || policy) if the reference sampled them. Resumes from its own checkpoint in `scratch`. In a process
    that a launcher started, training is shared with the other processes.
    """
    return train(lm, data, method, settings, scratch)[0]


def train(
    lm: LanguageModel,
    data: TrainingSet,
    method: Method,
    settings: RoundSettings,
    scratch: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[list[dict[str, float]], dict[str, Tensor] | None]:
    """(curve as in `align`, weights by name of a model that is split over processes).

    The weights are None if the model is whole or `settings.gather` is off, and empty in all processes but the first.
    """
    model = _learning(lm, data, settings)
    arguments = _arguments(settings, len(data.tokens), scratch)
    if arguments.device.type == "cpu":
        allow_fsdp_on_cpu()
    model.train()
    without_dropout(model)
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    layout = layout_of(model, settings.dtype)
    if layout == "plain" and model_split() != "whole":
        raise CannotRun(
            f"--sharding {model_split()}: {type(model).__name__} trains by its own forward, which is called once for "
            "each length and cannot be split; use --sharding replicate"
        )
    with packed_forward(model, layout):
        trainer = PreferenceTrainer(data, method, settings, model=model, args=arguments, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        if trainer.is_fsdp_enabled and settings.dtype == "bfloat16":
            keep_arithmetic(trainer)
        trainer.train(resume_from_checkpoint=last_checkpoint(scratch) if settings.resume else None)
    split = settings.gather and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if split else None
    lm.model.eval()
    return [_curve_entry(entry) for entry in trainer.state.log_history if "pair_loss" in entry], weights


def _learning(lm: LanguageModel, data: TrainingSet, settings: RoundSettings) -> Any:
    """The part of the model that training runs, with all other weights frozen."""
    if settings.trained_layers is not None:
        freeze_below(lm.model, settings.trained_layers)
    if settings.peft is not None:
        add_adapters(lm.model, settings.peft, settings.trained_layers)
    if settings.trained_layers is not None and data.trunk is not None:
        return top_of(lm.model, settings.trained_layers)
    return lm.model


def _arguments(settings: RoundSettings, pairs: int, scratch: Path) -> TrainingArguments:
    """Arguments of transformers' Trainer for this process's share of a round on `pairs` pairs."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch, accumulation = cut(settings.batch, processes, settings.micro_batch)
    steps = settings.epochs * -(-pairs // settings.batch)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16",
        logging_steps=1,
        save_strategy="steps" if steps > settings.checkpoint_steps else "no",
        save_steps=settings.checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        # else each process of a split model keeps gradients of the whole model until its last micro-batch
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": model_split() == "fsdp2"}},
        seed=settings.order_seed % 2**32,
        data_seed=settings.order_seed % 2**32,
    )
    if processes == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer uses all GPUs that it sees
    return arguments


def _curve_entry(entry: dict[str, Any]) -> dict[str, float]:
    names = {"step": "step", "loss": "pair_loss", "margin": "margin", "accuracy": "accuracy", "kl": "kl"}
    kept = {name: entry[key] for name, key in names.items()}
    return kept | {"grad_norm": round(float(entry["grad_norm"]), 5), "learning_rate": entry["learning_rate"]}
