"""Verdicts in files of other tools: what each row says, and which model wins how often."""
