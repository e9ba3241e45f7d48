"""Nothing that opens a door gets into a report, however it came into a config or a manifest."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"

_SECRET_NAME = re.compile(
    r"(^|[_-])(api_?key|key|token|secret|passw(or)?d|authorization|credentials?)$", re.IGNORECASE
)
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_URL_SECRET = re.compile(r"([?&][\w-]*(?:key|token|secret|sig|signature)=)[^&\s]+", re.IGNORECASE)
_KNOWN_FORMS = re.compile(r"\b(sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|AKIA\w{12,})")
_SHORTEST_SECRET = 12  # shorter values ("EMPTY", "changeme") are placeholders and common words


def redact(value: Any) -> Any:
    """``value`` with the values of secret-looking keys, logins in URLs and known keys hidden."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(item, str) and item and _SECRET_NAME.search(str(key))
            else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        text = _URL_LOGIN.sub(HIDDEN + "@", value)
        return _KNOWN_FORMS.sub(HIDDEN, _URL_SECRET.sub(r"\1" + HIDDEN, text))
    return value


def environment_secrets() -> list[str]:
    """The values of environment variables that are named like secrets."""
    return [
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    ]


def hide_environment_secrets(page: str) -> str:
    """``page`` without the values of environment variables that are named like secrets."""
    for value in environment_secrets():
        for form in {value, html.escape(value)}:
            page = page.replace(form, HIDDEN)
    return page
