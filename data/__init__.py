"""The nouns and how they come in: schemas, shards, prompts, preference datasets, their checks."""
