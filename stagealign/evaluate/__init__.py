"""Evaluation of policies (gold rewards, KL, capability, AlpacaEval 2) and measures of a round's data."""
