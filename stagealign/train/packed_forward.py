"""The forward of a model in training: packed pairs in, log-probs out."""

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
    """Makes packed log-probs the model's forward and the head's: one call a forward of the model, and of each module.

    What splits a model over processes hooks into those calls: gradients are averaged after the model's, and weights
    are gathered before and freed after each module's.
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
