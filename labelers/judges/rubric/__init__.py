"""The judge with a rubric: criteria, what is said of each, and what they add up to."""
