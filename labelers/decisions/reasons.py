"""Reasons of pairs that no filter dropped. They stand apart: counts need them, and no settings."""

PAIR_STRATEGY = "pair_strategy"
"""Of pairs that the pair strategy did not choose."""
TIE = "tie"
"""Of pairs on which neither answer is preferred."""
NO_VALID_VOTE = "no_valid_vote"
"""Of pairs on which nobody gave a vote that can be read."""
UNDECIDED = (TIE, NO_VALID_VOTE)
"""Of the pairs that have no preferred answer."""
