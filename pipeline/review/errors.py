"""What can go wrong between prefloop and Argilla, as one line."""

from prefloop.data.errors import PrefloopError


class ReviewError(PrefloopError):
    """Argilla cannot be reached or used as asked."""
