"""Errors of training, shown to the user as one line."""

from prefloop.data.errors import PrefloopError


class TrainingError(PrefloopError):
    """Training cannot start or go on. The message ends with what the user can do about it."""
