"""From packed pairs to logits at scored positions: on the fast path only these, elsewhere the model's own forward.

The fast path is taken if a miniature of the architecture proves it, as in `paths.py`. Rows and trees are proved apart:
a tree's mask stands for the model's own, so a window shorter than the text is left to rows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from stagealign.policy.logps import Packed, PairTokens, pack_rows, pack_trees, repack
from stagealign.policy.miniature import miniature

Layout = Literal["trees", "rows", "plain"]
"""What a model's pairs may be laid out as: rows with branches, plain rows, or plain rows by its own whole forward."""
TOLERANCE = 1e-4
"""Largest difference of a log-prob of the miniature, in nats."""


@dataclass(frozen=True)
class Layouts:
    """What is proved of an architecture."""

    layout: Layout
    longest: float = float("inf")
    """Tokens of a row up to which trees are right: the model's window."""


def hidden_states(body: PreTrainedModel, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Last hidden state, shape (B, N, d); from the trunk's output, shape (tokens, d), where that is given."""
    given = {"input_ids": packed.input_ids} if trunk is None else {"inputs_embeds": repack(trunk, packed)}
    out = body(**given, position_ids=packed.position_ids, attention_mask=packed.mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


def finisher(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What the model does to the logits of its head: scaling, and a soft cap."""
    text = config.get_text_config()
    factor = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        logits = logits if factor == 1.0 else logits * factor
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finish


def plain_logits(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Logits at the scored positions, shape (M, vocabulary), by the model's own whole forward on plain rows."""
    mask = (packed.origin >= 0).long()
    out = model(input_ids=packed.input_ids, attention_mask=mask, use_cache=False)
    logits: Tensor = out.logits.flatten(0, 1)[packed.predictor]
    return logits


def layouts_of(model: PreTrainedModel) -> Layouts:
    """What a loaded model's pairs may be laid out as."""
    config = model.config.get_text_config()
    layout = proved(key_of(model.config))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return Layouts(layout, float("inf") if window is None else float(window))


def key_of(config: PreTrainedConfig) -> str:
    """The config as text, which `proved` remembers its answer by."""
    return json.dumps({"model_type": config.model_type, **config.to_dict()}, sort_keys=True, default=str)


@lru_cache
def proved(key: str) -> Layout:
    """The best layout that a miniature of the config, given as JSON, proves."""
    raw = json.loads(key)
    try:
        small = miniature(AutoConfig.for_model(raw.pop("model_type"), **raw), window=4096)
    except Exception:  # an architecture without a miniature is not proved
        return "plain"
    small.set_attn_implementation("sdpa" if getattr(small, "_supports_sdpa", False) else "eager")
    expected = _logps(plain_logits(small, pack_rows(PAIRS)), pack_rows(PAIRS))
    found: Layout = "plain"
    for layout, packed in (("rows", pack_rows(PAIRS)), ("trees", pack_trees(PAIRS, [[0, 2], [1]]))):
        try:
            hidden = hidden_states(small.base_model, packed)
            logits = finisher(small.config)(small.get_output_embeddings()(hidden.flatten(0, 1)[packed.predictor]))
        except Exception:
            return found
        if (_logps(logits, packed) - expected).abs().max() > TOLERANCE:
            return found
        found = layout  # type: ignore[assignment]
    return found


def _logps(logits: Tensor, packed: Packed) -> Tensor:
    """Log-probs of each completion, shape (2 x pairs,)."""
    logps = -torch.nn.functional.cross_entropy(logits.float(), packed.target, reduction="none")
    return torch.zeros(len(packed.lengths)).index_add(0, packed.segment, logps)


PAIRS = tuple(
    PairTokens((*range(5, 20), *range(30, 30 + 7 * n)), tuple(range(40, 52 + n)), tuple(range(60, 65 + 2 * n)))
    for n in range(3)
)
"""Pairs of the miniature: prompts that share a start, of different lengths."""
