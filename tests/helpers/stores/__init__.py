"""Real stores of objects for tests."""
