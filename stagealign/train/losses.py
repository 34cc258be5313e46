"""Preference losses: pure functions of four log-prob vectors in nats, shape (pairs,), to losses, shape (pairs,).

Their names are looked up before work, so torch is imported only where a loss is computed.
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
    """A method's constants: `beta` per nat, `delta` the hinge margin, `sft_weight` the likelihood term's weight."""

    beta: float
    delta: float = 1.0
    sft_weight: float = 0.0


def log_ratio_margin(logps: Logps) -> "Tensor":
    """log-ratio of chosen minus log-ratio of rejected, policy over reference, in nats."""
    chosen = logps.policy_chosen - logps.reference_chosen
    return chosen - (logps.policy_rejected - logps.reference_rejected)


def sigmoid(logps: Logps, constants: Constants) -> "Tensor":
    """The DPO loss: minus the log of a logistic function of beta * margin; ln 2 where policy and reference agree.

    Source: Rafailov et al. 2305.18290, equation 7.
    """
    import torch.nn.functional as F

    return -F.logsigmoid(constants.beta * log_ratio_margin(logps))


def hinge(logps: Logps, constants: Constants) -> "Tensor":
    """The hinge form of SLiC, relu(delta - beta * margin); delta, so 1, where policy and reference agree.

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
    """SLiC-HF on log-probs a token, without a reference model: relu(delta - beta * difference of mean log-probs).

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
"""By the `form` that a method names. To add one: `docs/extending.md`."""


def loss_of(form: str) -> Loss:
    """The loss called `form`. Raises BadSpec, naming the known ones."""
    if form not in LOSSES:
        raise BadSpec(f"method form {form!r}: no such loss; choose one of {', '.join(LOSSES)}, or add it to LOSSES")
    return LOSSES[form]
