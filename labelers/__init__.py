"""Who prefers what: judges, scorers, juries, decisions, and the statistics of all of them."""
