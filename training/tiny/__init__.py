"""The recipe of the embedded default: tiny models that the project makes itself, from scratch.

``grammar`` writes prompts with checkable constraints and answers that meet any chosen subset of
them; ``recipe`` trains the tokenizer, the policy and the judge on what it writes.
"""
