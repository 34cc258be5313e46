"""Forward of a model in training: from packed pairs to log-probs."""

import contextlib
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from stagealign.policy.forward import CHUNK, attention_of, finisher, plain_logps, scored_states
from stagealign.policy.logps import Layout, Packed, completion_sums, token_logps


def _packed_logps(self: Any, packed: Packed, trunk: Tensor | None = None) -> Tensor:
    """Forward of a model in training: log-probs of chosen and rejected, shape (pairs, 2), in nats."""
    if packed.layout == "plain":
        logps = plain_logps(partial(type(self).forward, self), packed)
    else:
        scored = scored_states(self.base_model, packed, trunk)
        logps = self.get_output_embeddings()(scored, packed.target, finisher(self.config), CHUNK)
    return completion_sums(logps, packed).view(-1, 2)


def _head_logps(self: Any, hidden: Tensor, targets: Tensor, finish: Any, chunk: int) -> Tensor:
    """Forward of an output head in training: log-prob of each target."""
    return token_logps(hidden, targets, lambda rows: finish(type(self).forward(self, rows)), chunk)


@contextlib.contextmanager
def packed_forward(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Context in which the forwards of the model and its head compute packed log-probs, by this layout.

    Each step then calls the forward of the model, and of each module, exactly once. Libraries that split a model over
    processes hook into these calls: they average gradients after the model's forward, and gather weights before and
    free them after each module's. On the `plain` layout the head keeps its forward, and a step calls the modules once
    for each length.
    """
    head: Any = model.get_output_embeddings()
    bound: dict[Any, Any] = {model: _packed_logps} | ({} if layout == "plain" else {head: _head_logps})
    for module, forward in bound.items():
        module.forward = MethodType(forward, module)
    try:
        with attention_of(model, layout):
            yield
    finally:
        for module in bound:
            module.__dict__.pop("forward", None)
