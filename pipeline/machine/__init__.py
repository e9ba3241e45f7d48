"""How large models are, what fits into memory together, how fast this machine is."""
