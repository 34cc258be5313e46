"""A language model and what it writes: loading, starting policies, log-probs, samplers."""
