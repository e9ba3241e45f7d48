"""A server's further headers: what the config says of them, and what is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prefloop.data.protocol import EngineFailed


def shown_headers(given: Mapping[str, str]) -> dict[str, str]:
    """Those that the config spells out, which may change what a server answers. The others come
    from the environment, and are known here by nothing at all."""
    return {name.lower(): value for name, value in given.items() if not value.startswith("$")}


def secret_headers(given: Mapping[str, str]) -> dict[str, str]:
    """Those that the environment holds, with their values.

    Raises ``EngineFailed``, without showing it, for a variable that is not set or holds what no
    header can.
    """
    found = {}
    for name, value in given.items():
        if not value.startswith("$"):
            continue
        variable = value[1:]
        secret = os.environ.get(variable, "").strip()
        if not secret:
            raise EngineFailed(
                f"the header {name!r} comes from the environment variable {variable}, which is "
                "not set",
                f"set {variable}, or take the header out of the engine's extra_headers",
            )
        if not all(" " <= letter <= "~" for letter in secret):
            raise EngineFailed(
                f"the environment variable {variable} holds a line break or another character "
                f"that the header {name!r} cannot",
                f"put its value alone into {variable}, on one line",
            )
        found[name.lower()] = secret
    return found
