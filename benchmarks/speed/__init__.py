"""How fast the engine trains and the sampler samples, against TRL's defaults and `generate`, on one machine."""
