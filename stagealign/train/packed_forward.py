"""Forward of a model in training: from packed pairs to log-probs."""

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from stagealign.policy.logps import Packed, completion_logps, token_logps
from stagealign.train.reference import hidden_states


def _packed_logps(self: Any, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Forward of a model in training: log-probs of chosen and rejected, shape (pairs, 2), in nats."""
    hidden = hidden_states(self.base_model, packed, trunk)
    return completion_logps(hidden, self.get_output_embeddings(), packed, whole=True).view(-1, 2)


def _head_logps(self: Any, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Forward of an output head in training: log-prob of each target."""
    return token_logps(hidden, targets, lambda rows: type(self).forward(self, rows), chunk)


@contextlib.contextmanager
def packed_forward(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the forwards of the model and its head compute packed log-probs.

    Each step then calls the forward of the model, and of each module, exactly once. Libraries that split a model over
    processes hook into these calls: they average gradients after the model's forward, and gather weights before and
    free them after each module's.
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
