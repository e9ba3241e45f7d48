"""Errors that are a user's or a machine's, not a bug: the command line prints them as one line.

Every message names what is wrong, where, and what to do about it.
"""

from pathlib import Path
from typing import ClassVar

from prefloop.data.utf8 import shown

_CALLED: dict[str, str] = {}


def call_folder(folder: Path, name: str) -> None:
    """Let ``folder`` be called ``name`` in messages: by what its user knows of it."""
    _CALLED[str(folder)] = name


def as_called(text: str) -> str:
    """``text`` with the folders in it called by the names that :func:`call_folder` was told."""
    for folder, name in _CALLED.items():
        text = text.replace(folder, name)
    return text


class PrefloopError(Exception):
    """Base of all errors shown without a traceback."""

    exit_code: ClassVar[int] = 1
    """What the command line ends with."""

    def __str__(self) -> str:
        """The message, whose words may be a file's: nothing in it can command a terminal."""
        return "\n".join(map(shown, as_called(self.words()).split("\n")))

    def words(self) -> str:
        """The message as it was given."""
        return super().__str__()


class InputError(PrefloopError):
    """The user's input (prompts, config, arguments) cannot be used."""


class StorageError(PrefloopError):
    """A file of the run cannot be read or written."""


class NothingCameOut(PrefloopError):
    """A whole stage failed: every request, vote, pair or row of it, and nothing of it is done.

    The message has the commonest reason in the words of whoever gave it, and the key to change.
    """

    exit_code = 3
