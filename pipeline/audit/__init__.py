"""Any preference dataset: what is wrong with it, and a clean copy."""
