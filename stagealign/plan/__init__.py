"""Which artifacts are missing, what they cost and need."""
