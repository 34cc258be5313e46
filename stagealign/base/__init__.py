"""What every room may use: errors, identities, secrets, words, the client of a chat server."""
