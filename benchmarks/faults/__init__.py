"""Fault-injection benchmark: faults in runs, files, readers and servers; what was tried, how often, what survived."""
