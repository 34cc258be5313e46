"""The boundary meter: request, sampling, tally, measurement, pairs to judge."""
