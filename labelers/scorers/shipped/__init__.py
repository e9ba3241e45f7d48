"""Verifiers that ship with prefloop: each is a function that scores one answer against what is
known to be right.

They are called as users' functions are (``prefloop.labelers.scorers.function_pool``), with the
labeler's settings as ``options`` besides, and return 1 (right), 0 (wrong), the share of tests that
passed, or ``UNPARSED``: there is nothing in the answer that could be right or wrong. They raise
``GoldError`` where it is what should be right that cannot be read.
"""
