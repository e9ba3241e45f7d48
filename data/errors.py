"""Errors that are a user's or a machine's, not a bug: the command line prints them as one line.

Every message names what is wrong, where, and what to do about it.
"""


class PrefloopError(Exception):
    """Base of all errors shown without a traceback."""


class InputError(PrefloopError):
    """The user's input (prompts, config, arguments) cannot be used."""


class StorageError(PrefloopError):
    """A file of the run cannot be read or written."""
