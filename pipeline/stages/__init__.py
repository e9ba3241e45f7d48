"""The stages of a round: each reads shards of one noun and writes those of the next."""
