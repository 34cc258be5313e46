"""Parts of a page: one table or figure a file."""
