"""Training without dropout: a policy computes what the reference model computes, up to its weights."""

from collections.abc import Iterator
from typing import Any

from torch import nn

DROP, NOISE = "drop", "jitter"
"""Parts of the names under which modules and configs keep rates of dropout and of noise in routers."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def without_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout and layer drop of a model to 0, in place, and keeps noisy routers as in evaluation.

    A rate of noise stays, since a router may read it as a threshold too (PhiMoE).
    Source: TRL 1.16, `disable_dropout_in_model`, the default of its trainers, which covers modules of dropout only.
    """
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
        for name in list(_rates(module, DROP)):
            setattr(module, name, 0.0)
        if any(_rates(module, NOISE)):
            module.eval()
            module.train = lambda mode=True, kept=module: kept  # type: ignore[method-assign,misc]
    config = getattr(model, "config", None)
    for part in () if config is None else (config, config.get_text_config()):
        for name in list(_rates(part, DROP)):
            setattr(part, name, 0.0)


def _rates(owner: Any, what: str) -> Iterator[str]:
    """Names under which a module or config keeps rates of this kind."""
    return (name for name, value in vars(owner).items() if isinstance(value, float) and what in name)
