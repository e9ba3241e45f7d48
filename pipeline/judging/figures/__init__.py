"""Figures of judges on pairs with gold labels: what each said, rows of lists, groups of pairs."""
