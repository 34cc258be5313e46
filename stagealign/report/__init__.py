"""Results to tables, figures and pages; reads files only."""
