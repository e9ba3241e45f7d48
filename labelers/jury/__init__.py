"""From votes to one verdict a labeler, and from verdicts to the probability of the jury."""
