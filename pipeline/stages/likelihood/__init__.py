"""How likely a policy and those that it is compared with find texts: KL, and rewards."""
