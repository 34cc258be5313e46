"""What a policy is worth: gold rewards, KL, capability, AlpacaEval 2, what a round's data is like."""
