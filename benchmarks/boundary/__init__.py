"""Benchmark of the boundary meter: accuracy in worlds with a known score and on recorded preferences, speed, memory."""
