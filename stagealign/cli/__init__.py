"""Commands, one file each: the options, what the command does, and what it prints."""
