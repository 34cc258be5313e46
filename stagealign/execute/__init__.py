"""Who builds what is missing: processes of this machine, or a Ray cluster."""
