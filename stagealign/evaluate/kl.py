"""KL from one policy to another, along sampled completions."""

from collections.abc import Sequence

import torch

from stagealign.data.records import Candidate
from stagealign.policy import lm
from stagealign.policy.forward import layout_of, scored_logits
from stagealign.policy.logps import Packed, PairTokens, pack, to_device


@torch.inference_mode()
def kl_to(reference: lm.LanguageModel, policy: lm.LanguageModel, completions: Sequence[Candidate]) -> list[float]:
    """KL(policy || reference) along each sampled completion, in nats: the exact divergence summed over its tokens.

    The completions come from the decoding of the evaluation (temperature, top-p). The mean is therefore the divergence
    on evaluated texts, not under the policy's full distribution. Values are never negative, unlike log-ratios.
    """
    tokens = []
    for candidate in completions:
        assert candidate.token_ids is not None, "only sampled completions have a KL"
        end = () if candidate.truncated else (reference.end if candidate.end is None else candidate.end,)
        tokens.append(PairTokens(tuple(reference.prompt_ids(candidate.prompt)), candidate.token_ids + end, ()))
    out = [0.0] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i].tokens)
    dtype = str(reference.model.dtype).removeprefix("torch.")
    for start in range(0, len(order), 8):
        places = order[start : start + 8]
        packed = pack([tokens[i] for i in places], layout_of(reference.model, dtype))
        for i, value in zip(places, divergences(policy, reference, packed).tolist(), strict=True):
            out[i] = round(value, 4)
    return out


def divergences(policy: lm.LanguageModel, reference: lm.LanguageModel, packed: Packed) -> torch.Tensor:
    """KL(policy || reference) summed over each first completion's tokens, shape (pairs,), in nats."""
    packed = to_device(packed, policy.model.device)
    ours, theirs = (scored_logits(lm.model, packed).float().log_softmax(-1) for lm in (policy, reference))
    divergence = (ours.exp() * (ours - theirs)).sum(-1)
    sums = torch.zeros(len(packed.lengths), device=divergence.device).index_add(0, packed.segment, divergence)
    return sums.view(-1, 2)[:, 0]
