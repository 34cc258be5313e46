"""Attacks on everything that is built, as measurements: what was tried, how often, and what survived."""
