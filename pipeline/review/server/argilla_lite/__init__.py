"""What runs in the server's own virtual environment: Argilla with search in its own database.

Nothing here imports prefloop, and prefloop imports nothing of it but ``query`` (in tests): the two
environments have different versions of the same libraries.
"""
