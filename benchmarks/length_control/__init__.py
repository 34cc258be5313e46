"""Error of the offline length-controlled win rate against the published one, and the fit of its constants."""
