"""Judges: language models that compare, rank or rate answers; the shipped ones lie in shipped/."""
