"""Choice of the next token from logits."""

import torch
from torch import Tensor

from stagealign.base.identity import stream
from stagealign.grid.spec import Decoding
from stagealign.policy.lm import LanguageModel


def draws(seed: int, prompt_hash: str, index: int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) of one candidate; they do not depend on its batch."""
    generator = torch.Generator().manual_seed(stream(seed, "sample", prompt_hash, index))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def penalised(logits: Tensor, written: Tensor, decoding: Decoding) -> Tensor:
    """Logits (B, vocabulary) minus the penalties of `decoding` for tokens that a completion already contains.

    `written` has the same shape and counts those tokens. Source: vLLM's and OpenAI's presence and frequency penalties.
    """
    return logits - decoding.frequency_penalty * written - decoding.presence_penalty * (written > 0)


def choose(logits: Tensor, uniform: Tensor, decoding: Decoding, written: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Next token ids, shape (B,), and their log-probs at temperature 1, from logits (B, vocabulary) and draws (B,).

    Applies penalties (`penalised`), then top-k, then top-p among the k as in transformers: the smallest set whose mass
    reaches top_p. Temperature 0 is greedy. The log-probs are of the logits without penalties.
    """
    logits = logits.float()
    asked = logits if written is None else penalised(logits, written, decoding)
    if decoding.temperature == 0:
        token = asked.argmax(-1)
    else:
        top, ids = asked.topk(min(decoding.top_k, logits.shape[-1]), dim=-1)
        probs = (top / decoding.temperature).double().softmax(-1)
        mass = probs.cumsum(-1)
        mass = torch.where(mass - probs < decoding.top_p, probs, 0.0).cumsum(-1)
        place = (mass <= uniform[:, None] * mass[:, -1:]).sum(-1).clamp(max=top.shape[-1] - 1)
        token = ids.gather(1, place[:, None])[:, 0]
    logp = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return token, logp


def additive(seen: Tensor, lm: LanguageModel) -> Tensor:
    """Additive attention mask of shape (B, 1, S, T): 0 where `seen`, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=lm.model.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
