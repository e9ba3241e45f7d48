"""Which language a text is in, as ``langdetect`` has it."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

_ONE_AT_A_TIME = threading.Lock()
"""Its profiles are loaded once, by whoever comes first."""


def is_in(text: str, language: str) -> bool | None:
    """Whether ``text`` is in ``language`` (a code such as ``en``); None where it cannot be told,
    for a text without a letter.

    ``langdetect`` draws at random; here always from the same seed, so that an answer has one mark.
    """
    from langdetect import LangDetectException

    detector = _profiles().create()
    detector.seed = 0
    try:
        detector.append(text)
        return bool(detector.detect() == language)
    except LangDetectException:
        return None


def known_languages() -> list[str]:
    """Codes of the languages that can be told apart."""
    return sorted(_profiles().get_lang_list())


def _profiles() -> Any:
    with _ONE_AT_A_TIME:
        return _load()


@lru_cache(maxsize=1)
def _load() -> Any:
    from langdetect import PROFILES_DIRECTORY, DetectorFactory

    # One of our own: the module's would share its seed with everyone in the process.
    found = DetectorFactory()
    found.load_profile(PROFILES_DIRECTORY)
    return found
