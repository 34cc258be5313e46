"""How fast training, sampling, votes and whole rounds are, against what people use, on one machine in one run."""
