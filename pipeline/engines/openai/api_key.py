"""The keys of a server: read from their variables, sent in headers, and blotted out elsewhere."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable
from urllib.parse import quote

from prefloop.data.protocol import EngineFailed

NO_KEY = "none"
"""What is sent where no key is set; local servers ask for none."""
_PART = 6
_SHORTEST_STRUCK = 8
_MASKED = re.compile(r"([\w.-]{0,64}?)(?:\.{2,}|…+|\*{2,}|•{2,}|[xX]{4,})([\w-]{0,64})")
"""A key as servers quote it: its beginning, a mask, its end."""


class ApiKey:
    """A key, or that there is none. Its text stands in :attr:`value` alone, in no ``repr``.

    ``beside`` are other texts that are as secret: values of headers from the environment.
    """

    def __init__(self, value: str | None, *, beside: Iterable[str] = ()) -> None:
        self.value = value or NO_KEY
        # A short word of a header is no key, and would be blotted out of every sentence.
        others = [text for text in beside if len(text) >= _SHORTEST_STRUCK]
        self._keys = [key.lower() for key in (value, *others) if key]
        written = {form for key in (value, *others) if key for form in _forms(key)}
        self._forms = sorted(written, key=lambda form: (-len(form), form))

    def __repr__(self) -> str:
        return "ApiKey(***)"

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return self.value != NO_KEY

    def blot(self, text: str) -> str:
        """``text`` without the key and without parts of it: for messages."""
        if not self._forms:
            return text
        low, hidden = text.lower(), [False] * len(text)
        if len(low) != len(text):  # a letter whose lower case is longer
            low = text
        for form in self._forms:
            size = min(_PART, len(form))
            parts = {form[at : at + size].lower() for at in range(len(form) - size + 1)}
            for at in range(len(low) - size + 1):
                if low[at : at + size] in parts:
                    hidden[at : at + size] = [True] * size
        shown = "".join("\0" if hide else letter for letter, hide in zip(text, hidden, strict=True))
        return _MASKED.sub(self._unmasked, re.sub("\0+", "***", shown))

    @property
    def strikes(self) -> bool:
        """Whether there is anything that :meth:`strike` takes out of texts."""
        return bool(self._forms)

    def strike(self, text: str) -> str:
        """``text`` without the whole key: for what is kept, where a part may be a mere word."""
        for form in self._forms:
            if len(form) >= _SHORTEST_STRUCK:
                text = text.replace(form, "***")
        return text

    def _unmasked(self, found: re.Match[str]) -> str:
        head, tail = found[1].lower(), found[2].lower()
        own = any(
            (len(head) > 1 and key.startswith(head)) or (len(tail) > 1 and key.endswith(tail))
            for key in self._keys
        )
        return "***" if own else found[0]


def read_key(variable: str, *, beside: Iterable[str] = ()) -> ApiKey:
    """The key in the environment variable, white space around it taken off; ``beside`` as in
    :class:`ApiKey`.

    Raises ``EngineFailed``, without showing it, for a key that no HTTP header can hold.
    """
    value = os.environ.get(variable, "").strip()
    if not all("!" <= letter <= "~" for letter in value):
        raise EngineFailed(
            f"the key in the environment variable {variable} holds a line break, white space or "
            "another character that no key has",
            f"put the key alone into {variable}, on one line",
        )
    return ApiKey(value, beside=beside)


def _forms(key: str) -> set[str]:
    """The key and what it looks like after the usual ways of escaping."""
    return {
        key,
        json.dumps(key)[1:-1],
        repr(key)[1:-1],
        quote(key, safe=""),
        html.escape(key),
    }
