"""Execution of a plan: checks before work, then builds by processes of this machine or by a Ray cluster."""
