"""How near the offline length-controlled win rate comes to the published one, and where its constants come from."""
