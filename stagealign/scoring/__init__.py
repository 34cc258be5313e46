"""Contests, verdicts and reward models, shared by oracles and evaluation."""
