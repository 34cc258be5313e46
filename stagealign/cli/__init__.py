"""One file a command: its options, what it does, what it prints."""
