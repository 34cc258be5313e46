"""Preference training: losses, reference log-probs, the trainer, adapters, sharding, resuming."""
