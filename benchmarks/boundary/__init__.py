"""How well the boundary meter knows what it says: on worlds with a known score, and on recorded preferences."""
