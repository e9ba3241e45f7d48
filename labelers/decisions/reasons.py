"""The reason of pairs that no filter dropped. It stands apart: counts need it, and no settings."""

PAIR_STRATEGY = "pair_strategy"
"""Of pairs that the pair strategy did not choose."""
