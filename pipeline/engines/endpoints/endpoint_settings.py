"""The settings of one server, and what an address and a variable's name must look like."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import PositiveInt, field_validator

from prefloop.data.strict import Strict
from prefloop.pipeline.engines.handed_on import (
    KEY_BEGINS,
    VARIABLE,
    check_headers,
    looks_like_key,
)


class EndpointConfig(Strict):
    """One of the servers of an ``openai`` engine. All of them serve the same model by the same
    name; what is left out here is taken from the engine, and counts for this server alone."""

    base_url: str
    api_key_env: str | None = None
    """Name of the environment variable that holds this server's key."""
    max_concurrency: PositiveInt | None = None
    """Requests under way at once, at most. How many are is found out: it begins with 4, grows while
    answers come no later for it, and shrinks where the server refuses some (429, 503)."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    extra_headers: dict[str, str] = {}  # noqa: RUF012
    """Further HTTP headers for this server, beside the engine's; ``$NAME`` as there."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        return check_address(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str | None) -> str | None:
        return name if name is None else check_variable(name)

    @field_validator("extra_headers")
    @classmethod
    def _are_headers(cls, given: dict[str, str]) -> dict[str, str]:
        return check_headers(given)


def check_address(url: str) -> str:
    """``url``, if it is the address of a server and shows no key. Raises ``ValueError``."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port, parts = -1, urlsplit("")
    # What may be a key is never shown, so neither is a URL that may hold one.
    if "@" in url:
        raise ValueError("must not hold a user or a password: use api_key_env")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("must not hold a query or a fragment; a key belongs into the "
                         "environment variable that api_key_env names")  # fmt: skip
    if any(KEY_BEGINS.match(part) and len(part) > 19 for part in parts.path.split("/")):
        raise ValueError("must not hold a key: use api_key_env")
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("is no address of a server: http://HOST:PORT/v1 or https://HOST/v1")
    if port is not None and not 0 < port < 65536:
        raise ValueError("has a port that cannot be: ports are 1 to 65535")
    if not re.fullmatch(r"[!-~]+", url) or re.search(r'[<>"\\^`{|}]', url):
        raise ValueError("holds a character that no address has")
    return url


def check_variable(name: str) -> str:
    """``name``, if an environment variable can have it, and no key does. Raises ``ValueError``."""
    name = name.strip()
    if not VARIABLE.fullmatch(name) or (looks_like_key(name) and name not in os.environ):
        # Not shown: it may be a key.
        raise ValueError(
            "must be the name of an environment variable, such as OPENAI_API_KEY; the key "
            "itself is never written into a config"
        )
    return name


def headers_of_both(engine: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
    """The headers of an engine and of one server; the server's win."""
    own = {name.lower() for name in server}
    return {name: value for name, value in engine.items() if name.lower() not in own} | {**server}
