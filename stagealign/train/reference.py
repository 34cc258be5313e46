"""Values that a round computes once: reference log-probs, and the trunk's output (frozen layers)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor

from stagealign.base.batching import MICRO_BATCH
from stagealign.data.records import Pair, prompt_hash, read_rows
from stagealign.policy.context import left_out, trainable
from stagealign.policy.forward import arithmetic, attention_of, completion_logps, hidden_states, layout_of
from stagealign.policy.layers import top_of, trunk_of
from stagealign.policy.lm import LanguageModel, load, on_gpu, tensor
from stagealign.policy.logps import PairTokens, pack, to_device, unpack
from stagealign.stats.finite import check_finite
from stagealign.store.artifact import Facts, Work


@dataclass(frozen=True)
class TrainingSet:
    """Tokenized pairs with all values that training needs."""

    tokens: list[PairTokens]
    reference: Tensor
    """(pairs, 2): reference log-probs of chosen and rejected, in nats."""
    trunk: Tensor | None = None
    """(tokens of all pairs, d): output of the frozen layers; None if every layer learns."""
    prompts: Sequence[str] = ()
    """Prompt hash of each pair, for errors."""

    def trunk_of(self, places: Sequence[int], offsets: Sequence[int]) -> Tensor | None:
        """Trunk output of these pairs, laid end to end; None if every layer learns."""
        if self.trunk is None:
            return None
        return torch.cat([self.trunk[offsets[i] : offsets[i] + self.tokens[i].tokens] for i in places])


def tokenize(lm: LanguageModel, pairs: Sequence[Pair], max_length: int) -> list[PairTokens]:
    """Token ids of all pairs. Raises BadData for a prompt that leaves no room for a completion."""
    return [lm.pair_tokens(pair, max_length) for pair in pairs]


def by_length(tokens: Sequence[PairTokens], size: int = MICRO_BATCH) -> Iterator[list[int]]:
    """Yields indices of the pairs in groups of similar length, longest first."""
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i].tokens, i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def trunk_states(
    lm: LanguageModel, tokens: Sequence[PairTokens], trained_layers: int, dtype: str = "float32"
) -> Tensor:
    """Output of all but the top layers for every token of every pair, shape (tokens of all pairs, d)."""
    trunk, layout = trunk_of(lm.model, trained_layers), layout_of(lm.model, dtype)
    parts: list[Tensor] = [torch.empty(0)] * len(tokens)
    with arithmetic(dtype, lm.model.device), attention_of(lm.model, layout):
        for places in by_length(tokens):
            group = [tokens[i] for i in places]
            packed = to_device(pack(group, layout, share=dtype == "float32"), lm.model.device)
            states = unpack(hidden_states(trunk, packed), packed).split([pair.tokens for pair in group])
            for i, state in zip(places, states, strict=True):
                parts[i] = state.cpu()
    return torch.cat(parts)


@torch.inference_mode()
def reference_logps(
    lm: LanguageModel,
    tokens: Sequence[PairTokens],
    trunk: Tensor | None,
    trained_layers: int | None,
    dtype: str = "float32",
) -> Tensor:
    """Log-probs of chosen and rejected under the reference model, shape (pairs, 2), in nats, on the CPU.

    `dtype` is that of training: weights are as loaded and products are autocast, as they are for the policy. `trunk`
    may be on another device than the model.
    """
    device, layout = lm.model.device, layout_of(lm.model, dtype)
    model = lm.model if trunk is None or trained_layers is None else top_of(lm.model, trained_layers)
    inputs = TrainingSet(list(tokens), torch.empty(0), trunk)
    offsets = token_offsets(tokens)
    out = torch.empty(len(tokens), 2)
    with arithmetic(dtype, device), attention_of(lm.model, layout):
        for places in by_length(tokens):
            packed = to_device(pack([tokens[i] for i in places], layout, share=dtype == "float32"), device)
            states = inputs.trunk_of(places, offsets)
            logps = completion_logps(model, packed, None if states is None else states.to(device))
            out[places] = logps.view(-1, 2).cpu()
    return out


def token_offsets(tokens: Sequence[PairTokens]) -> list[int]:
    """Start of each pair's tokens if all pairs are laid end to end."""
    starts = [0]
    for pair in tokens[:-1]:
        starts.append(starts[-1] + pair.tokens)
    return starts


def build_trunk(work: Work) -> Facts:
    """Builder of `trunk`: output of the frozen layers for every token of a set of pairs."""
    lm = on_gpu(load(work.inputs["weights"], dtype="float32"))
    every = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    pairs, _ = trainable(lm, every, work.params["max_length"])
    tokens = tokenize(lm, pairs, work.params["max_length"])
    states = trunk_states(lm, tokens, work.params["trained_layers"], work.params["dtype"])
    save_file({"trunk": states}, work.out / "trunk.safetensors")
    return {"pairs": len(pairs), "tokens": len(states)}


def build_reference(work: Work) -> Facts:
    """Builder of `reference`: the reference model's log-probs of a set of pairs, shared by all rounds on them.

    Pairs whose prompt leaves no room within `max_length` are left out here and in training; facts count and name them.
    """
    lm = on_gpu(load(work.inputs["policy"], dtype="float32"))
    every = read_rows(work.inputs["pairs"] / "pairs.jsonl", Pair)
    pairs, dropped = trainable(lm, every, work.params["max_length"])
    tokens = tokenize(lm, pairs, work.params["max_length"])
    logps = reference_logps(lm, tokens, trunk_input(work), work.params["trained_layers"], work.params["dtype"])
    prompts = [prompt_hash(pair.prompt) for pair in pairs]
    check_finite(logps.sum(1).tolist(), prompts, "reference log-probs", "check the policy that the round starts from")
    save_file({"reference": logps}, work.out / "reference.safetensors")
    counts = {"forwards": 2 * len(pairs), "tokens": sum(p.tokens for p in tokens), "cut": sum(p.cut for p in tokens)}
    return {**counts, **left_out(dropped)}


def trunk_input(work: Work) -> Tensor | None:
    """Trunk output among the inputs, shape (tokens of all pairs, d); None if every layer learns."""
    if "trunk" not in work.inputs:
        return None
    return tensor(work.inputs["trunk"] / "trunk.safetensors", "trunk")
