"""From packed pairs to log-probs: by the fastest layout that is proved for the architecture, else its own forward.

A miniature of the architecture (`miniature.py`) proves a layout: the log-probs of completions must equal those of the
model's own forward on one unpadded sequence at a time. No table of names is trusted.
"""

import contextlib
import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from stagealign.policy.branches import branch_attention_of
from stagealign.policy.logps import Layout, Packed, PairTokens, completion_sums, pack, repack, token_logps
from stagealign.policy.miniature import miniature

TOLERANCE = 1e-4
"""Largest difference of the miniature's log-probs that rounding explains, relative and in nats."""
CHUNK = 1024
"""Scored positions whose logits exist at one time."""


def layout_of(model: PreTrainedModel, dtype: str = "float32") -> Layout:
    """The layout of a loaded model's pairs, computed in this dtype.

    In 16 bits, rounding that differs between two batches moves log-probs by tenths of nats. Padded rows are therefore
    taken in float32 only.
    """
    layout = proved(key_of(model.config))
    return "plain" if layout == "rows" and dtype != "float32" else layout


def arithmetic(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The arithmetic of training: float32 weights, and products in `dtype` by autocast, as in transformers' Trainer."""
    half = dtype != "float32"
    return torch.autocast(device.type, getattr(torch, dtype)) if half else contextlib.nullcontext()


def attention_of(model: PreTrainedModel, layout: Layout) -> contextlib.AbstractContextManager[None]:
    """Context in which the model's layers attend as the layout needs."""
    return branch_attention_of(model) if layout == "branches" else contextlib.nullcontext()


def hidden_states(body: PreTrainedModel, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Last hidden state, shape (B, N, d); starts from the trunk's output, shape (tokens, d), if given."""
    given = {"input_ids": packed.input_ids} if trunk is None else {"inputs_embeds": repack(trunk, packed)}
    if packed.branches is not None:
        given |= {"position_ids": packed.position_ids, "branches": packed.branches}  # type: ignore[dict-item]
    hidden: Tensor = body(**given, use_cache=False).last_hidden_state
    return hidden


def scored_states(body: PreTrainedModel, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Last hidden state before each scored token, shape (M, d)."""
    return hidden_states(body, packed, trunk).flatten(0, 1)[packed.predictor]


def finisher(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What the model does to the logits of its head: scaling (Cohere, Granite) and a soft cap (Gemma)."""
    text = config.get_text_config()
    factor = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        logits = logits if factor == 1.0 else logits * factor
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finish


def plain_logits(forward: Callable[..., object], packed: Packed) -> Tensor:
    """Logits at the scored positions, shape (M, vocabulary), by a model's own whole forward: nothing is padded."""
    lengths = (packed.origin >= 0).sum(1)
    longest, row_of = packed.input_ids.shape[1], packed.predictor // packed.input_ids.shape[1]
    found, order = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        logits: Tensor = forward(input_ids=packed.input_ids[rows, :length], use_cache=False).logits  # type: ignore[attr-defined]
        here = torch.isin(row_of, rows).nonzero()[:, 0]
        within = torch.searchsorted(rows, row_of[here])
        found.append(logits[within, packed.predictor[here] % longest])
        order.append(here)
    return torch.cat(found)[torch.cat(order).argsort()]


def scored_logits(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Logits at the scored positions, shape (M, vocabulary), as the model gives them: scaled and capped."""
    if packed.layout == "plain":
        return plain_logits(model, packed)
    with attention_of(model, packed.layout):
        states = scored_states(model.base_model, packed)
    return finisher(model.config)(model.get_output_embeddings()(states))


def completion_logps(model: PreTrainedModel, packed: Packed, trunk: Tensor | None = None, chunk: int = CHUNK) -> Tensor:
    """Sum of log-probs over each completion's tokens, shape (2 x pairs,), float32.

    Logits are computed for `chunk` completion positions at a time, never for prompt positions. On the `plain` layout
    they are the model's own, of all positions.
    """
    if packed.layout == "plain":
        return completion_sums(plain_logps(model, packed), packed)
    with attention_of(model, packed.layout):
        states = scored_states(model.base_model, packed, trunk)
    head, finish = model.get_output_embeddings(), finisher(model.config)
    logps = token_logps(states, packed.target, lambda rows: finish(head(rows)), chunk)
    return completion_sums(logps, packed)


def plain_logps(forward: Callable[..., object], packed: Packed) -> Tensor:
    """Log-prob of each scored token, shape (M,), float32, by a model's own whole forward."""
    logits = plain_logits(forward, packed)
    return -torch.nn.functional.cross_entropy(logits.float(), packed.target, reduction="none")


def key_of(config: PreTrainedConfig) -> str:
    """The config as text, by which `proved` remembers its answer."""
    return json.dumps({"model_type": config.model_type, **config.to_dict()}, sort_keys=True, default=str)


@lru_cache
def proved(key: str) -> Layout:
    """The fastest layout that a miniature of the config, given as JSON, proves."""
    raw = json.loads(key)
    try:
        small = miniature(AutoConfig.for_model(raw.pop("model_type"), **raw))
        with torch.inference_mode():
            expected = completion_logps(small, pack(PAIRS, "plain"))
    except Exception:  # an architecture without a miniature is not proved
        return "plain"
    return next((layout for layout in LAYOUTS if _equals(small, layout, expected)), "plain")


LAYOUTS: tuple[Layout, ...] = ("branches", "rows")
"""The fast layouts, fastest first."""


@torch.inference_mode()
def _equals(small: PreTrainedModel, layout: Layout, expected: Tensor) -> bool:
    """Whether a layout gives the log-probs that the miniature's own forward gives."""
    try:
        found = completion_logps(small, pack(PAIRS, layout))
    except Exception:  # what an architecture does to arguments that it does not know
        return False
    return torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


PAIRS = tuple(
    PairTokens((*range(5, 25), *range(30, 30 + 7 * n)), tuple(range(40, 52 + n)), tuple(range(60, 65 + 2 * n)))
    for n in range(3)
)
"""Pairs of the miniature: prompts of different lengths that share a start, longer than the miniature's window."""
