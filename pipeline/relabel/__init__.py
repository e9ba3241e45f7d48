"""A run's answers labelled again, beside the labels they have or in their place."""
