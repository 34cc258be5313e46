"""Preference losses: pure functions from four log-prob vectors in nats, shape (pairs,), to losses, shape (pairs,).

Names of losses are checked before any work, so torch is imported only inside the losses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stagealign.base.errors import BadSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logps:
    """Summed log-probs of one batch of pairs; lengths are completion tokens, EOS included."""

    policy_chosen: "Tensor"
    policy_rejected: "Tensor"
    reference_chosen: "Tensor"
    reference_rejected: "Tensor"
    chosen_tokens: "Tensor"
    rejected_tokens: "Tensor"


@dataclass(frozen=True)
class Constants:
    """Constants of a method: `beta` per nat, `delta` the margin of the hinge, `sft_weight` of the likelihood term."""

    beta: float
    delta: float = 1.0
    sft_weight: float = 0.0


def log_ratio_margin(logps: Logps) -> "Tensor":
    """Log-ratio (policy over reference) of chosen minus that of rejected, shape (pairs,), in nats."""
    chosen = logps.policy_chosen - logps.reference_chosen
    return chosen - (logps.policy_rejected - logps.reference_rejected)


def sigmoid(logps: Logps, constants: Constants) -> "Tensor":
    """The DPO loss: minus the log of the sigmoid of beta * margin; ln 2 if policy and reference agree.

    Source: Rafailov et al. 2305.18290, equation 7.
    """
    import torch.nn.functional as F

    return -F.logsigmoid(constants.beta * log_ratio_margin(logps))


def hinge(logps: Logps, constants: Constants) -> "Tensor":
    """Hinge form of SLiC, relu(delta - beta * margin); delta (1 by default) if policy and reference agree.

    Source: Liu et al. 2309.06657 (RSO), section 3.3; TRL's `hinge`.
    """
    return (constants.delta - constants.beta * log_ratio_margin(logps)).relu()


def slic_hf(logps: Logps, constants: Constants) -> "Tensor":
    """SLiC-HF, without a reference model: relu(delta - logp(chosen) + logp(rejected)) - sft_weight * logp(chosen).

    Source: Zhao et al. 2305.10425, equation 1, with the chosen completion as the regularisation target.
    """
    rank = (constants.delta - logps.policy_chosen + logps.policy_rejected).relu()
    return rank - constants.sft_weight * logps.policy_chosen


def slic_norm(logps: Logps, constants: Constants) -> "Tensor":
    """SLiC-HF on mean log-probs per token, without a reference model: relu(delta - beta * their difference).

    Source: SimPO's trainer (Meng et al. 2405.14734), its SLiC-HF baseline, normalised by length.
    """
    chosen = logps.policy_chosen / logps.chosen_tokens
    rejected = logps.policy_rejected / logps.rejected_tokens
    return (constants.delta - constants.beta * (chosen - rejected)).relu() - constants.sft_weight * chosen


Loss: TypeAlias = Callable[[Logps, Constants], "Tensor"]
LOSSES: dict[str, Loss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "slic-hf": slic_hf,
    "slic-norm": slic_norm,
}
"""Losses by the `form` of a method. To add one: `docs/extending.md`."""


def loss_of(form: str) -> Loss:
    """The loss of that form. Raises BadSpec, listing the known ones."""
    if form not in LOSSES:
        raise BadSpec(f"method form {form!r}: no such loss; choose one of {', '.join(LOSSES)}, or add it to LOSSES")
    return LOSSES[form]
