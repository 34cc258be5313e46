"""Results as values for tables and figures."""
