"""Limits on how much one forward of a model holds; execution, never identity."""

LARGE_MODEL = 1e9
"""Number of weights above which activations are recomputed and SFT batches are split."""
MICRO_BATCH = 4
"""Maximum pairs in one forward of one process, unless the user sets another number."""
