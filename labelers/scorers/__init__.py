"""What gives answers a score or a rank without being asked in words: models, rules, references."""
