"""Several values of a setting, over the same answers and votes."""
