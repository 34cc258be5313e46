"""Limits on how much one forward of a model holds; execution, never identity."""

LARGE_MODEL = 1e9
"""Number of weights above which activations are recomputed, and the batch of SFT is cut in parts."""
MICRO_BATCH = 4
"""Most pairs in one forward of one process, unless another number is asked for."""
