"""What is trained on, as token ids: pairs, single answers, pairs for reward models."""
