"""Language models: loading, starting policies, log-probs, samplers."""
