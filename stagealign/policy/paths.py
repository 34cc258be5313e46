"""Which path samples a model: our batched sampler where it is proved to be right, else transformers' `generate`.

A miniature of the same architecture proves the structure: our logits must be those of `generate` on one unpadded
prompt. A guard of 32 tokens on the real weights compares with the model's own forward, and can only demote. No table of
names is trusted: an architecture that is not proved takes the general path.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AutoConfig, LogitsProcessor, PreTrainedConfig

from stagealign.base.errors import StagealignError
from stagealign.policy.fast import fast_logits
from stagealign.policy.general import Batches, generated, only
from stagealign.policy.lm import LanguageModel
from stagealign.policy.miniature import miniature

STEPS = 4
"""Tokens of each continuation whose logits are compared."""
SAME = 1e-3
"""Largest difference of the miniature's logits, in their standard deviations; rounding stays below 1e-4."""
SEEN = 0.02
"""What a token of the shared prefix must move the miniature's logits by, in the same unit, for it to prove anything."""
GUARD = 32
"""Tokens of the real model that are compared."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.06}
"""Largest difference of a log-prob that rounding of a dtype explains, in nats or, if more, deviations of the logits."""
CHANGING = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the longest row of a batch."""
SHARED = tuple(range(5, 25))
"""Prefix that the miniature's prompts share: longer than its window."""
TAILS = (tuple(range(30, 34)), (40, 41, 42), tuple(range(50, 81)), (60,))
GIVEN = tuple(tuple((13 * row + 29 * step) % 90 + 3 for step in range(STEPS)) for row in range(len(TAILS)))
"""Continuations of the miniature's prompts."""


@dataclass(frozen=True)
class SamplingPath:
    """How a model is sampled."""

    fast: bool
    why: str = ""
    """Why it takes the general path; empty on the fast one."""
    batches: Batches = "padded"
    """What a call of `generate` may hold on the general path."""
    longest: float = float("inf")
    """Tokens up to which a text depends on itself alone in a batch; a longer one is sampled alone."""

    @property
    def name(self) -> str:
        """`fast` or `general`."""
        return "fast" if self.fast else "general"

    @property
    def sampler(self) -> str:
        """What writes the samples, in words."""
        return "our own sampler" if self.fast else "transformers' own generate"


_PATHS: WeakKeyDictionary[nn.Module, SamplingPath] = WeakKeyDictionary()


def path_of(lm: LanguageModel) -> SamplingPath:
    """The path of a loaded model, found once. Raises StagealignError if `generate` fails on the model too."""
    path = _PATHS.get(lm.model)
    if path is None:
        path = _PATHS[lm.model] = _found(lm)
    return path


def _found(lm: LanguageModel) -> SamplingPath:
    path = proved(key_of(lm.model.config))
    if path.fast:
        why = guard(lm)
        path = replace(path, fast=not why, why=why)
    if path.fast:
        return path
    _try_generate(lm)
    if path.batches == "single" and _equal_rows(lm, _real_ids(lm, GUARD), _limit(lm)):
        return replace(path, batches="equal")
    return path


def _try_generate(lm: LanguageModel) -> None:
    """Raises StagealignError, with the library's reason, if `generate` cannot write two tokens of real weights."""
    try:
        generated(lm, [_real_ids(lm, 8)], Forced([[0, 0]], 8), 2, [])
    except Exception as error:  # each architecture has errors of its own
        raise StagealignError(
            f"policy of model type {lm.model.config.model_type!r}: transformers' generate fails on text alone "
            f"({first_line(error)}); serve the model and give --policy-url"
        ) from error


def key_of(config: PreTrainedConfig) -> str:
    """The config as text, by which `proved` remembers its answer."""
    return json.dumps({**config.to_dict(), "model_type": config.model_type}, sort_keys=True, default=str)


@lru_cache
def proved(key: str) -> SamplingPath:
    """The path that a miniature of the config, given as JSON, proves; the guard is not asked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    try:
        return _proved(json.loads(key))
    finally:
        torch.set_num_threads(threads)


def _proved(raw: dict[str, Any]) -> SamplingPath:
    try:
        config = AutoConfig.for_model(raw.pop("model_type"), **raw)
        small = miniature(config)
        lm = LanguageModel(small, SimpleNamespace(eos_token_id=2, pad_token_id=0))
        case = _case(lm)
    except Exception as error:  # each architecture has errors of its own
        return SamplingPath(False, f"no miniature of the architecture can be sampled ({first_line(error)})", "single")
    why = structure(case)
    return SamplingPath(not why, why, _batches(case) if why else "single", _longest(config))


@dataclass(frozen=True)
class Case:
    """A miniature and what `generate` says of each of its prompts alone."""

    lm: LanguageModel
    logits: tuple[Tensor, Tensor]
    """Shape (prompts, steps, vocabulary), with the shared prefix and without."""

    def differs(self, found: Tensor, place: int) -> bool:
        """Whether logits are others than those of `generate`, rounding aside; NaN is other."""
        own = self.logits[place]
        return not (found - own).abs().max().item() <= SAME * own.std().item()

    @property
    def sharp(self) -> bool:
        """Whether a token of the shared prefix moves the logits enough for equal ones to prove anything."""
        other = [*SHARED[:-4], 90, *SHARED[-3:], *TAILS[1]]
        moved = (_forced(self.lm, [other], [GIVEN[1]])[0] - self.logits[0][1]).abs().max().item()
        return moved >= SEEN * self.logits[0].std().item()


def _case(lm: LanguageModel) -> Case:
    return Case(lm, (_alone(lm, _prompts(SHARED)), _alone(lm, _prompts(()))))


def _prompts(shared: Sequence[int]) -> list[list[int]]:
    return [[*shared, *tail] for tail in TAILS]


def _alone(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits of `generate` on one unpadded prompt at a time, shape (prompts, steps, vocabulary)."""
    return torch.cat([_forced(lm, [prompt], [given]) for prompt, given in zip(prompts, GIVEN, strict=True)])


def structure(case: Case) -> str:
    """Why the fast path is not proved by a miniature; empty if it is."""
    for place, shared in enumerate((SHARED, ())):
        try:
            ours = fast_logits(case.lm, shared, TAILS, GIVEN)
        except Exception as error:  # whatever a model does to an unknown cache
            detail = str(error) if isinstance(error, StagealignError) else type(error).__name__
            return f"the architecture does not take our cache ({detail})"
        if case.differs(ours, place):
            return "the architecture computes something that our attention does not"
    return "" if case.sharp else "its miniature depends too little on what it reads to prove anything"


def _batches(case: Case) -> Batches:
    """The largest batches in which a miniature writes what it writes of one prompt alone."""
    if not case.sharp:
        return "single"
    try:
        if not case.differs(_forced(case.lm, _prompts(()), GIVEN), 1):
            return "padded"
    except Exception:  # an architecture that takes no padding
        return "single" if not _equal_rows(case.lm, _prompts(())[2], SAME) else "equal"
    return "equal" if _equal_rows(case.lm, _prompts(())[2], SAME) else "single"


def _equal_rows(lm: LanguageModel, ids: Sequence[int], limit: float) -> bool:
    """Whether a row has the logits that it has alone when others of its length stand beside it.

    `limit` is in standard deviations of the logits.
    """
    given = [GIVEN[0], GIVEN[1], GIVEN[0]]
    try:
        alone = _forced(lm, [ids], given[:1])
        beside = _forced(lm, [ids, ids[::-1], ids], given)[::2]
    except Exception:  # an architecture that takes one row only
        return False
    return (beside - alone).abs().max().item() <= limit * alone.std().item()


@dataclass
class Forced(LogitsProcessor):
    """Leaves the given tokens, whatever the logits are."""

    given: Sequence[Sequence[int]]
    prompt: int
    """Tokens before them, padding included."""
    ids: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.ids = torch.tensor([list(ids) for ids in self.given])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return only(self.ids[:, input_ids.shape[1] - self.prompt].to(scores.device), scores)


def _forced(lm: LanguageModel, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]]) -> Tensor:
    """Logits of `generate` before each token of the continuations, shape (prompts, steps, vocabulary)."""
    processor = Forced(given, max(map(len, prompts)))
    out = generated(lm, prompts, processor, len(given[0]), [], logits=True)
    return torch.stack(out.logits, 1).float()


def _longest(config: PreTrainedConfig) -> float:
    """Tokens after which rotary frequencies change for a whole batch; infinite if they never do."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or text.max_position_embeddings
        for kind in kinds
        if str(kind.get("rope_type", "")).startswith(CHANGING)
    ]
    return float(min(limits, default=float("inf")))


@torch.inference_mode()
def guard(lm: LanguageModel) -> str:
    """Why the model's own forward disagrees with the fast path on `GUARD` tokens; empty if they agree."""
    ids = _real_ids(lm, GUARD)
    own = lm.model(input_ids=torch.tensor([ids], device=lm.model.device), use_cache=False).logits[0, -1]
    half = len(ids) // 2
    fast = fast_logits(lm, ids[:half], [ids[half:]])[0, 0]
    difference = (_logps(own) - _logps(fast)).abs().max().item()
    limit = _limit(lm) * max(1.0, own.float().std().item())
    return "" if difference <= limit else f"on its weights the two paths' log-probs differ by {difference:.3g} nats"


def _limit(lm: LanguageModel) -> float:
    return TOLERANCE.get(lm.model.dtype, TOLERANCE[torch.float32])


def _real_ids(lm: LanguageModel, count: int) -> list[int]:
    """Some token ids of a model's vocabulary."""
    return [(7 * place + 3) % lm.model.config.get_text_config().vocab_size for place in range(count)]


def _logps(logits: Tensor) -> Tensor:
    """Log-probs, the unlikely ones cut off: rounding alone may move those far."""
    return logits.float().log_softmax(-1).clamp(min=-12)


def first_line(error: Exception) -> str:
    """First line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
