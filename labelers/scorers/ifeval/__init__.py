"""IFEval's instructions: do answers follow what a prompt asked for, in ways a program can check?

The rules are those of the official evaluation (Zhou et al. 2023, arXiv:2311.07911), whatever one
may think of some of them; ``instructions`` has the 25 types, ``following`` the strict and the
loose way to apply them.
"""
