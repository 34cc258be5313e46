"""Which path samples a model: our batched sampler where it is proved to be right, else `generate`.

Two checks decide. A miniature of the same architecture proves the structure: both paths must write the same tokens with
the same log-probs. A guard of 32 tokens on the real weights compares logits with the model's own forward. The guard can
only demote. No table of names is trusted: an architecture that is not proved takes the general path.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from stagealign.grid.spec import Decoding
from stagealign.policy.fast import fast_logits, fast_rows
from stagealign.policy.general import general_rows
from stagealign.policy.lm import LanguageModel
from stagealign.policy.miniature import miniature

STEPS = 8
"""Tokens that both paths write of each prompt of the miniature."""
GUARD = 32
"""Tokens of the real model that are compared."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.06}
"""Largest difference of a log-prob, in nats, that rounding of a dtype explains."""
PROMPTS = (
    tuple(range(5, 29)),
    (*range(5, 21), 40, 41, 42),
    (*range(5, 21), *range(50, 81)),
    (*range(5, 21), 60),
)
"""Token ids of the miniature's prompts: what they share is as long as its window."""


@dataclass(frozen=True)
class SamplingPath:
    """How a model is sampled."""

    fast: bool
    why: str
    """Why it takes the general path; empty on the fast one."""


def path_of(lm: LanguageModel) -> SamplingPath:
    """The path of a loaded model."""
    why = structure(key_of(lm.model.config)) or guard(lm)
    return SamplingPath(not why, why)


def key_of(config: PreTrainedConfig) -> str:
    """The config as text, which `structure` remembers its answer by."""
    return json.dumps({"model_type": config.model_type, **config.to_dict()}, sort_keys=True, default=str)


@lru_cache
def structure(key: str) -> str:
    """Why the fast path is not proved for a config, given as JSON; empty where it is."""
    raw = json.loads(key)
    try:
        small = miniature(AutoConfig.for_model(raw.pop("model_type"), **raw))
    except Exception as error:  # each architecture has errors of its own
        return f"no miniature of the architecture could be built ({_first_line(error)})"
    lm = LanguageModel(small, SimpleNamespace(eos_token_id=2, pad_token_id=0))  # type: ignore[arg-type]
    for prompts in (PROMPTS, tuple(prompt[::-1] for prompt in PROMPTS)):
        why = _differs(lm, prompts)
        if why:
            return why
    return ""


def _differs(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> str:
    """Where the two paths differ on these prompts; empty where they do not."""
    greedy = Decoding(temperature=0.0, max_new_tokens=STEPS)
    chance = [[torch.zeros(STEPS, dtype=torch.float64)] for _ in prompts]
    try:
        ours = dict(fast_rows(lm, prompts, chance, greedy))
    except Exception as error:  # what a model does to an unknown cache
        return f"the architecture does not take our cache ({_first_line(error)})"
    theirs = dict(general_rows(lm, prompts, chance, greedy, rows=1))
    for place, (mine,) in ours.items():
        (own,) = theirs[place]
        if mine.ids != own.ids or abs(mine.logp - own.logp) > 0.01:
            return "the architecture computes something that our attention does not"
    return ""


@torch.inference_mode()
def guard(lm: LanguageModel) -> str:
    """Why a model's own forward disagrees with the fast path on `GUARD` tokens; empty where they agree."""
    count = min(GUARD, lm.model.config.get_text_config().vocab_size - 1)
    ids = [(7 * place + 3) % (count + 1) for place in range(GUARD)]
    own = lm.model(input_ids=torch.tensor([ids], device=lm.model.device), use_cache=False).logits[0, -1]
    fast = fast_logits(lm, ids)
    difference = (_logps(own) - _logps(fast)).abs().max().item()
    limit = TOLERANCE.get(lm.model.dtype, 2e-3)
    return "" if difference <= limit else f"on its weights log-probs differ by {difference:.3g} nats"


def _logps(logits: Tensor) -> Tensor:
    """The likeliest tokens' log-probs: of the others rounding alone may be large."""
    return logits.float().log_softmax(-1).clamp(min=-12)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
