"""The engine: policy + pairs + loss -> policy. One loop for every method, on transformers.Trainer.

What does not change while a round trains is computed once: the reference log-probs of a set of pairs, shared by all
methods, betas, learning rates and cells, and, where lower layers are frozen, those layers' output.
"""

import contextlib
import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stagealign.devices import MICRO_BATCH, cut, spread
from stagealign.errors import BadNumbers, CannotRun
from stagealign.finite import check_finite, prompts_named
from stagealign.lm import LanguageModel, freeze_below, load, on_gpu, save, tensor, top_of, trunk_of
from stagealign.logps import Packed, PairTokens, completion_logps, pack, repack, to_device, token_logps, unpack
from stagealign.losses import LOSSES, Constants, Logps, log_ratio_margin
from stagealign.records import Pair, prompt_hash, read_rows
from stagealign.spec import Lora, Method, stream
from stagealign.store import SCRATCH, Work

CHECKPOINT_STEPS = 50
"""Steps between the engine's own checkpoints."""
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What torch's allocators say."""
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
    prompts: Sequence[str] = ()
    """Prompt hash of each pair, for errors."""

    def trunk_of(self, places: Sequence[int], offsets: Sequence[int]) -> Tensor | None:
        """Trunk output of these pairs laid end to end."""
        if self.trunk is None:
            return None
        return torch.cat([self.trunk[offsets[i] : offsets[i] + self.tokens[i].tokens] for i in places])


@dataclass(frozen=True)
class Settings:
    """How a round is trained: identity up to `peft`, then execution."""

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
    """Pairs in one forward of one process; None takes what fits."""
    activation_checkpointing: bool = False
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
        packed = to_device(pack(group, lm.model.config.hidden_size), lm.model.device)
        states = unpack(hidden_states(trunk, packed), packed).split([pair.tokens for pair in group])
        for i, state in zip(places, states, strict=True):
            parts[i] = state.cpu()
    return torch.cat(parts)


@torch.inference_mode()
def reference_logps(
    lm: LanguageModel, tokens: Sequence[PairTokens], trunk: Tensor | None, trained_layers: int | None
) -> Tensor:
    """Log-probs of chosen and rejected under the reference model, shape (pairs, 2), in nats, on the CPU.

    `trunk` may be on another device than the model.
    """
    device = lm.model.device
    model = lm.model if trunk is None or trained_layers is None else top_of(lm.model, trained_layers)
    inputs = TrainingSet(list(tokens), torch.empty(0), trunk)
    offsets = _offsets(tokens)
    out = torch.empty(len(tokens), 2)
    for places in by_length(tokens):
        packed = to_device(pack([tokens[i] for i in places], lm.model.config.hidden_size), device)
        states = inputs.trunk_of(places, offsets)
        hidden = hidden_states(model.base_model, packed, None if states is None else states.to(device))
        out[places] = completion_logps(hidden, model.get_output_embeddings(), packed).view(-1, 2).cpu()
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


NO_PAIR = -1
"""Fills an epoch's last micro-batches, so that every process has as many."""


class BatchOrder(Sampler[int]):
    """A seeded order in which each run of `batch` pairs is a global batch, sorted by length inside it.

    So the micro-batch and the processes decide how a global batch is cut and never which pairs are in it. The order
    ends with NO_PAIR up to the next multiple of `multiple`.
    """

    def __init__(self, tokens: Sequence[PairTokens], batch: int, seed: int, multiple: int = 1):
        self.tokens, self.batch, self.seed, self.epoch = tokens, batch, seed, 0
        self.filled = -len(tokens) % multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens) + self.filled

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream(self.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        for start in range(0, len(order), self.batch):
            yield from sorted(order[start : start + self.batch], key=lambda i: (-self.tokens[i].tokens, i))
        yield from [NO_PAIR] * self.filled


class EpochOf(TrainerCallback):
    """Tells the order which epoch begins; over several processes accelerate's loader does not pass it on."""

    def __init__(self, order: BatchOrder):
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))


def _packed_logps(self: Any, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Forward of a model in training: log-probs of chosen and rejected, shape (pairs, 2), in nats."""
    hidden = hidden_states(self.base_model, packed, trunk)
    return completion_logps(hidden, self.get_output_embeddings(), packed, whole=True).view(-1, 2)


def _head_logps(self: Any, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Forward of an output head in training: log-prob of each target."""
    return token_logps(hidden, targets, lambda rows: type(self).forward(self, rows), chunk)


@contextlib.contextmanager
def packed_forward(model: PreTrainedModel) -> Iterator[None]:
    """Makes packed log-probs the model's forward and the head's: one call a forward of the model, and of each module.

    What splits a model over processes hooks into those calls: gradients are averaged after the model's, and weights
    are gathered before and freed after each module's.
    """
    head: Any = model.get_output_embeddings()
    bound: dict[Any, Any] = {model: _packed_logps, head: _head_logps}
    for module, forward in bound.items():
        module.forward = MethodType(forward, module)
    try:
        yield
    finally:
        for module in bound:
            module.__dict__.pop("forward", None)


NOTED = ("pairs", "pair_loss", "margin", "accuracy", "kl")
"""What is summed over the pairs of a step."""


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
        self.shortest = min(range(len(data.tokens)), key=lambda i: data.tokens[i].tokens)
        multiple = self.args.per_device_train_batch_size * self.args.world_size
        self.order = BatchOrder(data.tokens, settings.batch, settings.order_seed, multiple)
        self.width: int = self.model.config.hidden_size
        self.add_callback(EpochOf(self.order))
        self.sums = dict.fromkeys(NOTED, 0.0)
        self.step_places: list[int] = []

    def collate(self, places: list[int]) -> dict[str, Any]:
        """What one forward needs of these pairs."""
        return {"places": torch.tensor(places)}

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the global batch, as this micro-batch's share times micro-batches and processes.

        The Trainer divides by the micro-batches, and what averages gradients divides by the processes.
        """
        places = [place for place in inputs["places"].tolist() if place != NO_PAIR]
        counts = bool(places)
        places = places or [self.shortest]  # a process without pairs still takes part in every forward
        self.step_places += places if counts else []
        device = self.args.device
        packed = to_device(pack([self.data.tokens[i] for i in places], self.width), device)
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
        """Pairs of the global batch that is being accumulated; the last of an epoch may be smaller."""
        steps = -(-len(self.data.tokens) // self.settings.batch)
        return self.last_batch if (self.state.global_step + 1) % steps == 0 else self.settings.batch

    def _note(self, logps: Logps, losses: Tensor) -> None:
        """Adds one micro-batch to the sums that the next log line reports; stops at a number that is not finite."""
        with torch.no_grad():
            margin = log_ratio_margin(logps)
            self._check(losses, "the loss")
            self._check(margin, "the margin")  # a hinge loss of an infinite one is 0
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
        """Raises BadNumbers, naming step and prompts, where one of the last micro-batch's `values` is not finite."""
        if not torch.isfinite(values).all():
            places = self.step_places[-len(values) :]
            self._stop(what, [place for place, one in zip(places, values.tolist(), strict=True) if not isfinite(one)])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, once it is known to be finite: what follows is the update of the weights."""
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.world_size == 1 and not isfinite(found):  # of several processes each knows its own pairs alone
            self._stop("the gradient", self.step_places)
        self.step_places = []
        return found

    def _stop(self, what: str, places: Sequence[int]) -> None:
        names = [self.data.prompts[place] if self.data.prompts else f"of pair {place}" for place in places]
        kept = _last_checkpoint(Path(self.args.output_dir))
        saved = f"the last good checkpoint stays in {kept}" if kept else "no weight was written"
        raise BadNumbers(
            f"step {self.state.global_step + 1}: {what} is not finite; lower the learning rate "
            f"({self.settings.learning_rate}) or look at {prompts_named(list(dict.fromkeys(names)))}; {saved}"
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
        """One checkpoint, marked when whole; then those before it go, in the order of steps whatever the clock says."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        scratch = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        (scratch / name / WHOLE).touch()
        _remove_checkpoints(scratch, but=name)


def align(
    lm: LanguageModel, data: TrainingSet, method: Method, settings: Settings, scratch: Path
) -> list[dict[str, float]]:
    """Trains the policy in place; returns one entry a step: step, loss, margin (beta x nats), accuracy, grad_norm, kl.

    `kl` is the mean of reference minus policy log-prob of the batch's completions, in nats a completion: an estimate of
    KL(reference || policy) where the reference sampled them. Resumes from its own checkpoint in `scratch`. In a process
    that a launcher started, trains together with the others.
    """
    return train(lm, data, method, settings, scratch)[0]


def train(
    lm: LanguageModel,
    data: TrainingSet,
    method: Method,
    settings: Settings,
    scratch: Path,
    callbacks: Sequence[TrainerCallback] = (),
    gather: bool = True,
) -> tuple[list[dict[str, float]], dict[str, Tensor] | None]:
    """As `align`; beside the curve the weights by name where the model is split and `gather` asks for them, else None.

    In all processes but the first, the weights that come back are empty.
    """
    model: Any = lm.model
    if settings.trained_layers is not None:
        freeze_below(lm.model, settings.trained_layers)
    if settings.peft is not None:
        add_adapters(lm.model, settings.peft, settings.trained_layers)
    if settings.trained_layers is not None and data.trunk is not None:
        model = top_of(lm.model, settings.trained_layers)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch, accumulation = cut(settings.batch, processes, settings.micro_batch)
    steps = settings.epochs * -(-len(data.tokens) // settings.batch)
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
        # else each process of a split model keeps the gradients of the whole one until its last micro-batch
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": _split() == "fsdp2"}},
        seed=settings.order_seed % 2**32,
        data_seed=settings.order_seed % 2**32,
    )
    if processes == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads over all GPUs that it sees
    if arguments.device.type == "cpu":
        _allow_fsdp_on_cpu()
    model.train()
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with packed_forward(model):
        trainer = PreferenceTrainer(data, method, settings, model=model, args=arguments, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        if trainer.is_fsdp_enabled and settings.dtype == "bfloat16":
            _keep_logps_whole(trainer)
        trainer.train(resume_from_checkpoint=_last_checkpoint(scratch) if settings.resume else None)
    split = gather and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if split else None
    lm.model.eval()
    return [_curve_entry(entry) for entry in trainer.state.log_history if "pair_loss" in entry], weights


def _keep_logps_whole(trainer: Trainer) -> None:
    """Leaves the output of a split model as it is, and averages gradients in float32.

    Accelerate's own policy casts what each module returns to bfloat16, in which a log-prob of -300 nats is known to 2.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def _allow_fsdp_on_cpu() -> None:
    """Lets accelerate split a model over CPU processes where asked to: it offers FSDP to GPUs alone, torch to all.

    It looks at the kind of processes only; their device and gloo stay as they are.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def add_adapters(model: PreTrainedModel, lora: Lora, trained_layers: int | None = None) -> None:
    """Puts LoRA adapters into the model's linear layers (the top ones where only those learn); all else is frozen.

    Their first weights come from a fixed seed. Raises CannotRun without the extra `lora`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CannotRun("--peft lora: peft is not installed; `pip install 'stagealign[lora]'`") from error
    linear = {name for name, part in model.base_model.layers.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted({name.rpartition(".")[2] for name in linear})
    depth = len(model.base_model.layers)
    layers = None if trained_layers is None else list(range(depth - trained_layers, depth))
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, layers_to_transform=layers
    )
    with torch.random.fork_rng():
        torch.manual_seed(stream(0, "lora") % 2**32)
        inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)


def merge_adapters(model: nn.Module) -> None:
    """Adds what the adapters learned to the weights and takes them out again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())


def within_memory(
    lm: LanguageModel,
    again: Callable[[], LanguageModel],
    data: TrainingSet,
    method: Method,
    settings: Settings,
    scratch: Path,
) -> tuple[LanguageModel, list[dict[str, float]], int]:
    """(policy, curve, micro-batch) of a round; where memory runs out, it starts again in smaller micro-batches.

    The global batch stays, and so do the numbers. `again` loads the starting policy anew. Raises CannotRun where not
    even one pair fits.
    """
    micro, _ = cut(settings.batch, 1, settings.micro_batch)
    while True:
        curve: list[dict[str, float]] = []
        if _fits(lm, data, method, replace(settings, micro_batch=micro), scratch, curve):
            return lm, curve, micro
        if micro == 1:
            raise CannotRun("training ran out of memory with one pair at a time; free some, or use `--workers 1`")
        micro = next(n for n in range(micro // 2, 0, -1) if settings.batch % n == 0)
        del lm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lm = again()


def _fits(
    lm: LanguageModel,
    data: TrainingSet,
    method: Method,
    settings: Settings,
    scratch: Path,
    curve: list[dict[str, float]],
) -> bool:
    """Whether memory was enough; then `curve` has the round's steps."""
    try:
        curve += align(lm, data, method, settings, scratch)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter, on CPUs a plain one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        return False
    return True


def _last_checkpoint(scratch: Path) -> str | None:
    """The last whole checkpoint, and the only one that is left: what a kill left half written goes."""
    whole = {int(path.parent.name.rpartition("-")[2]): path.parent for path in scratch.glob(f"*/{WHOLE}")}
    last = whole[max(whole)] if whole else None
    if not int(os.environ.get("RANK", "0")):
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
    lm = on_gpu(load(work.inputs["weights"], dtype=work.params["dtype"]))
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    tokens = tokenize(lm, pairs, work.params["max_length"])
    states = trunk_states(lm, tokens, work.params["trained_layers"])
    save_file({"trunk": states}, work.out / "trunk.safetensors")
    return {"pairs": len(pairs), "tokens": len(states)}


def build_reference(work: Work) -> dict[str, Any]:
    """Builder of `reference`: the reference model's log-probs of a set of pairs, once for all who train on it."""
    lm = on_gpu(load(work.inputs["policy"], dtype=work.params["dtype"]))
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    tokens = tokenize(lm, pairs, work.params["max_length"])
    logps = reference_logps(lm, tokens, _trunk(work), work.params["trained_layers"])
    prompts = [prompt_hash(pair.prompt) for pair in pairs]
    check_finite(logps.sum(1).tolist(), prompts, "reference log-probs", "look at the policy that the round starts from")
    save_file({"reference": logps}, work.out / "reference.safetensors")
    return {"forwards": 2 * len(pairs), "tokens": sum(p.tokens for p in tokens), "cut": sum(p.cut for p in tokens)}


def build_policy(work: Work) -> dict[str, Any]:
    """Builder of `policy`: one round of preference optimisation, here or in processes of its own."""
    if not work.devices.launched:
        facts = train_round(work)
        assert facts is not None, "one process is the first"
        return facts
    training = work.params["training"]
    given = {
        "params": dict(work.params),
        "inputs": {name: str(folder) for name, folder in work.inputs.items()},
        "out": str(work.out),
        "home": str(work.home),
    }
    return spread(work.devices, given, work.out, training["batch"], training["trained_layers"])


def train_round(work: Work) -> dict[str, Any] | None:
    """Trains one round and writes the policy; facts in the first process, None in the others.

    bfloat16 is the arithmetic's; the optimizer moves float32 weights, as 16 bits lose a step of 5e-7.
    """
    training = work.params["training"]
    pairs = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    settings = Settings(
        learning_rate=work.params["learning_rate"],
        order_seed=work.params["seed"],
        peft=Lora(**training["peft"]) if training.get("peft") else None,
        micro_batch=work.devices.micro_batch,
        activation_checkpointing=work.devices.activation_checkpointing,
        **{
            name: training[name]
            for name in ("batch", "epochs", "warmup", "schedule", "max_grad_norm", "dtype", "trained_layers")
        },
    )
    method = Method(**work.params["method"])

    def start() -> LanguageModel:
        return load(work.inputs["policy"], dtype="float32")

    lm = start()
    tokens = tokenize(lm, pairs, training["max_length"])
    reference = tensor(work.inputs["reference"] / "reference.safetensors", "reference")
    data = TrainingSet(tokens, reference, _trunk(work), [prompt_hash(pair.prompt) for pair in pairs])
    scratch = work.out / SCRATCH / _split()  # a checkpoint in parts is of no use to a process that has the whole
    lowered: dict[str, Any] = {}
    if work.devices.launched:
        curve, weights = train(lm, data, method, settings, scratch)
    else:
        lm, curve, micro = within_memory(lm, start, data, method, settings, scratch)
        weights = None
        planned, _ = cut(settings.batch, 1, settings.micro_batch)
        if micro != planned:
            lowered = {"lowered": f"micro-batch {micro}, not {planned}: out of memory"}
    if int(os.environ.get("RANK", "0")):
        return None
    if weights is not None:  # this process holds its part of the model only
        lm = start()
        if settings.peft:
            add_adapters(lm.model, settings.peft)
        lm.model.load_state_dict(weights)
    if settings.peft:
        merge_adapters(lm.model)
    lm.model.to(getattr(torch, training["dtype"]))
    save(lm, work.out, start=work.inputs["policy"], top_layers=settings.trained_layers)
    return {
        "pairs": len(pairs),
        "tokens": sum(p.tokens for p in tokens),
        "cut": sum(p.cut for p in tokens),
        "curve": curve,
        **lowered,
    }


def _split() -> str:
    """How this process and its fellows hold the model: names the folder of their checkpoints."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        return "zero3"
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" else "whole"


def _trunk(work: Work) -> Tensor | None:
    if "trunk" not in work.inputs:
        return None
    return tensor(work.inputs["trunk"] / "trunk.safetensors", "trunk")
