"""Results as values that tables are made of."""
