"""From a cell to its artifacts, and from artifacts to a result."""
