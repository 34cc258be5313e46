"""Training without dropout: a policy computes what the reference model computes, up to its weights."""

from torch import nn

CHANCE = ("drop", "jitter")
"""Parts of the names under which modules keep rates of chance."""


def without_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout, layer drop and router noise of a model to 0, in place, as TRL's default does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(part in name for part in CHANCE):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items()) if config is not None else ():
        if isinstance(value, float) and any(part in name for part in CHANCE):
            setattr(config, name, 0.0)
