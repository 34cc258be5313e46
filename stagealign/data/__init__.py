"""Rows, tables, preference files and downloads; one file a data set."""
