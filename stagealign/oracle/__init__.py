"""Preference oracles: PairRM, reward models, judges, recorded judgments, the labs' own; one catalogue."""
