"""The engine: policy + pairs + loss -> policy. One loop for every method, on transformers.Trainer.

What does not change while a round trains is computed once: the reference log-probs of a set of pairs, shared by all
methods, betas, learning rates and cells, and, where lower layers are frozen, those layers' output.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stagealign.errors import StagealignError
from stagealign.lm import LanguageModel, freeze_below, load, save, top_of, trunk_of
from stagealign.logps import Packed, PairTokens, completion_logps, pack, repack, to_device, unpack
from stagealign.losses import LOSSES, Constants, Logps, log_ratio_margin
from stagealign.records import Pair, read_rows
from stagealign.spec import Method, stream
from stagealign.store import SCRATCH, Work

MICRO_BATCH = 4
"""Pairs in one forward; execution, not identity."""
CHECKPOINT_STEPS = 50
"""Steps between the engine's own checkpoints."""
WHOLE = "whole"
"""File in a checkpoint that is written last."""


@dataclass(frozen=True)
class TrainingSet:
    """Pairs ready for the engine."""

    tokens: list[PairTokens]
    reference: Tensor
    """(pairs, 2): reference log-probs of chosen and rejected, in nats."""
    trunk: Tensor | None = None
    """(tokens of all pairs, d): output of the frozen layers; None where every layer learns."""

    def trunk_of(self, places: Sequence[int], offsets: Sequence[int]) -> Tensor | None:
        """Trunk output of these pairs laid end to end."""
        if self.trunk is None:
            return None
        return torch.cat([self.trunk[offsets[i] : offsets[i] + self.tokens[i].tokens] for i in places])


@dataclass(frozen=True)
class Settings:
    """How a round is trained: identity but for the last three fields."""

    learning_rate: float
    batch: int
    epochs: int
    warmup: float
    schedule: str
    max_grad_norm: float
    dtype: str
    order_seed: int
    trained_layers: int | None = None
    micro_batch: int = MICRO_BATCH
    checkpoint_steps: int = CHECKPOINT_STEPS
    resume: bool = True


def tokenize(lm: LanguageModel, pairs: Sequence[Pair], max_length: int) -> list[PairTokens]:
    """Token ids of all pairs; raises BadData for a prompt that leaves no room."""
    return [lm.pair_tokens(pair, max_length) for pair in pairs]


def by_length(tokens: Sequence[PairTokens], size: int = MICRO_BATCH) -> Iterator[list[int]]:
    """Places of the pairs in groups of similar length, longest first."""
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i].tokens, i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def hidden_states(body: PreTrainedModel, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Last hidden state, shape (B, N, d); from the trunk's output, shape (tokens, d), where that is given."""
    given = {"input_ids": packed.input_ids} if trunk is None else {"inputs_embeds": repack(trunk, packed)}
    out = body(**given, position_ids=packed.position_ids, attention_mask=packed.mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


@torch.inference_mode()
def trunk_states(lm: LanguageModel, tokens: Sequence[PairTokens], trained_layers: int) -> Tensor:
    """Output of all but the top layers for every token of every pair, shape (tokens of all pairs, d)."""
    trunk = trunk_of(lm.model, trained_layers)
    parts: list[Tensor] = [torch.empty(0)] * len(tokens)
    for places in by_length(tokens):
        group = [tokens[i] for i in places]
        packed = pack(group, lm.model.config.hidden_size)
        states = unpack(hidden_states(trunk, packed), packed).split([pair.tokens for pair in group])
        for i, state in zip(places, states, strict=True):
            parts[i] = state
    return torch.cat(parts)


@torch.inference_mode()
def reference_logps(
    lm: LanguageModel, tokens: Sequence[PairTokens], trunk: Tensor | None, trained_layers: int | None
) -> Tensor:
    """Log-probs of chosen and rejected under the reference model, shape (pairs, 2), in nats."""
    model = lm.model if trunk is None or trained_layers is None else top_of(lm.model, trained_layers)
    inputs = TrainingSet(list(tokens), torch.empty(0), trunk)
    offsets = _offsets(tokens)
    out = torch.empty(len(tokens), 2)
    for places in by_length(tokens):
        packed = pack([tokens[i] for i in places], lm.model.config.hidden_size)
        hidden = hidden_states(model.base_model, packed, inputs.trunk_of(places, offsets))
        out[places] = completion_logps(hidden, model.get_output_embeddings(), packed).view(-1, 2)
    return out


def _offsets(tokens: Sequence[PairTokens]) -> list[int]:
    """Where each pair's tokens start when all are laid end to end."""
    starts = [0]
    for pair in tokens[:-1]:
        starts.append(starts[-1] + pair.tokens)
    return starts


class Places(Dataset[int]):
    """The pairs' numbers; the collator looks the pairs up."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        return place


class BatchOrder(Sampler[int]):
    """A seeded order in which each run of `batch` pairs is a global batch, sorted by length inside it.

    So the micro-batch decides how a global batch is cut and never which pairs are in it.
    """

    def __init__(self, tokens: Sequence[PairTokens], batch: int, seed: int):
        self.tokens, self.batch, self.seed, self.epoch = tokens, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream(self.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        for start in range(0, len(order), self.batch):
            yield from sorted(order[start : start + self.batch], key=lambda i: (-self.tokens[i].tokens, i))


class PreferenceTrainer(Trainer):
    """transformers.Trainer whose loss is one of `losses.LOSSES` on packed pairs."""

    def __init__(self, data: TrainingSet, method: Method, settings: Settings, **given: Any):
        super().__init__(train_dataset=Places(len(data.tokens)), data_collator=self.collate, **given)
        self.model_accepts_loss_kwargs = False
        self.data, self.settings = data, settings
        self.loss = LOSSES[method.form]
        self.constants = Constants(method.beta, method.delta, method.sft_weight)
        self.offsets = _offsets(data.tokens)
        self.last_batch = len(data.tokens) % settings.batch or settings.batch
        self.sums: dict[str, float] = {}

    def collate(self, places: list[int]) -> dict[str, Any]:
        """What one forward needs of these pairs."""
        return {"places": torch.tensor(places)}

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return BatchOrder(self.data.tokens, self.settings.batch, self.settings.order_seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the global batch, as this micro-batch's share times the number of micro-batches."""
        places = inputs["places"].tolist()
        device = self.args.device
        packed = pack([self.data.tokens[i] for i in places], model.config.hidden_size)
        packed = to_device(packed, device)
        trunk = self.data.trunk_of(places, self.offsets)
        hidden = hidden_states(model.base_model, packed, None if trunk is None else trunk.to(device))
        policy = completion_logps(hidden, model.get_output_embeddings(), packed).view(-1, 2)
        reference = self.data.reference[places].to(device)
        lengths = packed.lengths.view(-1, 2)
        logps = Logps(*policy.T, *reference.T, *lengths.T)
        losses = self.loss(logps, self.constants)
        self._note(logps, losses)
        share = losses.sum() / self._global_batch()
        return share * self.current_gradient_accumulation_steps

    def _global_batch(self) -> int:
        """Pairs of the global batch that is being accumulated; the last of an epoch may be smaller."""
        steps = -(-len(self.data.tokens) // self.settings.batch)
        return self.last_batch if (self.state.global_step + 1) % steps == 0 else self.settings.batch

    def _note(self, logps: Logps, losses: Tensor) -> None:
        """Adds one micro-batch to the sums that the next log line reports; stops at a loss that is not finite."""
        with torch.no_grad():
            margin = log_ratio_margin(logps)
            shift = logps.reference_chosen - logps.policy_chosen + logps.reference_rejected - logps.policy_rejected
            noted = {
                "pairs": float(len(losses)),
                "pair_loss": losses.sum().item(),
                "margin": self.constants.beta * margin.sum().item(),
                "accuracy": (margin > 0).sum().item(),
                "kl": shift.sum().item() / 2,
            }
        if not torch.isfinite(losses).all():
            raise StagealignError(
                f"step {self.state.global_step + 1}: the loss is not finite; lower the learning rate "
                f"({self.settings.learning_rate}) or look at the pairs of this step"
            )
        for name, value in noted.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        pairs = self.sums.pop("pairs", 0.0)
        if pairs:
            logs |= {name: round(value / pairs, 6) for name, value in self.sums.items()}
        self.sums = {}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """One checkpoint, marked when whole; then those before it go, in the order of steps whatever the clock says."""
        super()._save_checkpoint(model, trial)
        scratch = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        (scratch / name / WHOLE).touch()
        _remove_checkpoints(scratch, but=name)


def align(
    lm: LanguageModel, data: TrainingSet, method: Method, settings: Settings, scratch: Path
) -> list[dict[str, float]]:
    """Trains the policy in place; returns one entry a step: step, loss, margin (beta x nats), accuracy, grad_norm, kl.

    `kl` is the mean of reference minus policy log-prob of the batch's completions, in nats a completion: an estimate of
    KL(reference || policy) where the reference sampled them. Resumes from its own checkpoint in `scratch`.
    """
    model: Any = lm.model
    if settings.trained_layers is not None:
        freeze_below(lm.model, settings.trained_layers)
        if data.trunk is not None:
            model = top_of(lm.model, settings.trained_layers)
    if settings.batch % settings.micro_batch:
        raise StagealignError(f"micro-batch {settings.micro_batch}: must divide the global batch of {settings.batch}")
    steps = settings.epochs * -(-len(data.tokens) // settings.batch)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch // settings.micro_batch,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16" and torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="steps" if steps > settings.checkpoint_steps else "no",
        save_steps=settings.checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.order_seed % 2**32,
        data_seed=settings.order_seed % 2**32,
    )
    model.train()
    trainer = PreferenceTrainer(data, method, settings, model=model, args=arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(scratch) if settings.resume else None)
    lm.model.eval()
    return [_curve_entry(entry) for entry in trainer.state.log_history if "pair_loss" in entry]


def _last_checkpoint(scratch: Path) -> str | None:
    """The last whole checkpoint, and the only one that is left: what a kill left half written goes."""
    whole = {int(path.parent.name.rpartition("-")[2]): path.parent for path in scratch.glob(f"*/{WHOLE}")}
    last = whole[max(whole)] if whole else None
    _remove_checkpoints(scratch, but=last.name if last else "")
    return str(last) if last else None


def _remove_checkpoints(scratch: Path, but: str) -> None:
    """Removes checkpoints; the mark goes first, so that a kill leaves none that looks whole."""
    for path in scratch.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name != but:
            (path / WHOLE).unlink(missing_ok=True)
            shutil.rmtree(path)


def _curve_entry(entry: dict[str, Any]) -> dict[str, float]:
    names = {"step": "step", "loss": "pair_loss", "margin": "margin", "accuracy": "accuracy", "kl": "kl"}
    kept = {name: entry[key] for name, key in names.items()}
    return kept | {"grad_norm": round(float(entry["grad_norm"]), 5), "learning_rate": entry["learning_rate"]}


def build_trunk(work: Work) -> dict[str, Any]:
    """Builder of `trunk`: output of the layers that no round trains, for every token of a set of pairs."""
    lm = load(work.inputs["weights"], dtype=work.params["dtype"])
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    tokens = tokenize(lm, pairs, work.params["max_length"])
    states = trunk_states(lm, tokens, work.params["trained_layers"])
    save_file({"trunk": states}, work.out / "trunk.safetensors")
    return {"pairs": len(pairs), "tokens": len(states)}


def build_reference(work: Work) -> dict[str, Any]:
    """Builder of `reference`: the reference model's log-probs of a set of pairs, once for all who train on it."""
    lm = load(work.inputs["policy"], dtype=work.params["dtype"])
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    tokens = tokenize(lm, pairs, work.params["max_length"])
    logps = reference_logps(lm, tokens, _trunk(work), work.params["trained_layers"])
    save_file({"reference": logps}, work.out / "reference.safetensors")
    return {"forwards": 2 * len(pairs), "tokens": sum(p.tokens for p in tokens), "cut": sum(p.cut for p in tokens)}


def build_policy(work: Work) -> dict[str, Any]:
    """Builder of `policy`: one round of preference optimisation."""
    training = work.params["training"]
    lm = load(work.inputs["policy"], dtype=training["dtype"])
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    tokens = tokenize(lm, pairs, training["max_length"])
    reference = load_file(work.inputs["reference"] / "reference.safetensors")["reference"]
    settings = Settings(
        learning_rate=work.params["learning_rate"],
        order_seed=work.params["seed"],
        **{
            name: training[name]
            for name in ("batch", "epochs", "warmup", "schedule", "max_grad_norm", "dtype", "trained_layers")
        },
    )
    scratch = work.out / SCRATCH
    curve = align(lm, TrainingSet(tokens, reference, _trunk(work)), Method(**work.params["method"]), settings, scratch)
    save(lm, work.out, start=work.inputs["policy"], top_layers=settings.trained_layers)
    return {
        "pairs": len(pairs),
        "tokens": sum(p.tokens for p in tokens),
        "cut": sum(p.cut for p in tokens),
        "curve": curve,
    }


def _trunk(work: Work) -> Tensor | None:
    if "trunk" not in work.inputs:
        return None
    return load_file(work.inputs["trunk"] / "trunk.safetensors")["trunk"]
