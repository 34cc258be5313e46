"""Speed benchmark: training, sampling, votes and whole rounds against common tools, on one machine in one run."""
