"""Conversations: turns, thoughts and answers, as texts and as the tokens of a policy."""
