"""Frozen values: models, methods, sources, scales, cells, selection, claims, the paper's numbers."""
