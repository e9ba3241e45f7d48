"""Which Argilla to talk to, and with which key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import find_home

KEY_VARIABLE = "ARGILLA_API_KEY"


@dataclass(frozen=True)
class Account:
    """A server and a key for it. The key is not shown by ``repr``."""

    url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Account(url={self.url!r})"


def find_account(server: str | None = None, home: Path | None = None) -> Account:
    """The server at ``server`` with the key in ARGILLA_API_KEY, else the embedded one of ``home``.

    Raises :class:`ReviewError` where there is no key, or no server runs.
    """
    key = os.environ.get(KEY_VARIABLE)
    if server:
        if not key:
            raise ReviewError(
                f"{server}: no API key: put it into the environment variable {KEY_VARIABLE} (an "
                "owner's or admin's; Argilla shows it under My settings)"
            )
        return Account(server.rstrip("/"), key)
    place = find_home(home)
    url = place.url()
    if url is None:
        raise ReviewError(
            f"no server of {place.root} runs: start one with `prefloop review up`, or give "
            f"--server URL and its key in {KEY_VARIABLE}"
        )
    return Account(url, place.owner().api_key)
