"""Pure numbers: votes, the sequential decision, paired statistics, effectiveness, diversity."""
