"""Parts that every package uses: errors, identities, secrets, words, the client of a chat server."""
