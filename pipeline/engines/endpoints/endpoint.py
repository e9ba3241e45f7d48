"""One server of an engine: its address, its key, and how it is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefloop.pipeline.engines.endpoints.endpoint_settings import EndpointConfig
from prefloop.pipeline.engines.openai.api_key import ApiKey, read_key
from prefloop.pipeline.engines.openai.connections.response import Response
from prefloop.pipeline.engines.openai.headers import secret_headers, shown_headers
from prefloop.pipeline.engines.openai.openai_errors import Failures
from prefloop.pipeline.engines.openai.server_words import Said, said_in
from prefloop.pipeline.engines.openai.transport import Transport
from prefloop.pipeline.engines.settings import OpenAIEngine


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A server. ``name`` stands for it in messages: its address, and where two have the same, the
    variable of its key."""

    name: str
    settings: EndpointConfig
    key: ApiKey
    transport: Transport
    failures: Failures

    def said(self, response: Response) -> Said:
        """What the server said, without keys."""
        return self.blotted(said_in(response.body))

    def blotted(self, said: Said) -> Said:
        """``said`` without keys."""
        return replace(said, words=self.key.blot(said.words))


@dataclass(slots=True)
class EndpointTurn:
    """A request's turn at an endpoint, and when it was ``sent`` and the answer ``came``, by
    ``time.monotonic``; 0 before."""

    endpoint: Endpoint
    sent: float = 0.0
    came: float = 0.0

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """See ``Transport.post``."""
        self.sent = time.monotonic()
        try:
            return await self.endpoint.transport.post(path, body)
        finally:
            self.came = time.monotonic()


class TurnNotTaken(Exception):
    """Nothing was sent: the endpoint is not asked this."""


def endpoints_of(config: OpenAIEngine) -> tuple[Endpoint, ...]:
    """The servers of an engine. Sends nothing.

    Raises ``EngineFailed`` for keys and headers that cannot be sent, and addresses that are none.
    """
    servers, urls = config.servers, config.addresses
    headers = [secret_headers(one.extra_headers) for one in servers]
    keys = [read_key(one.api_key_env or "") for one in servers]
    secrets = [text for each in headers for text in each.values()]
    secrets += [key.value for key in keys if key.is_set]
    found = []
    for server, secret in zip(servers, headers, strict=True):
        # No server is to show another's key, should it know it.
        key = read_key(server.api_key_env or "", beside=secrets)
        sent = shown_headers(server.extra_headers) | secret
        name = server.base_url
        if urls.count(name) > 1:
            name = f"{name} ({server.api_key_env})"
        transport = Transport(server.base_url, key, config.timeout_s, sent)
        found.append(Endpoint(name, server, key, transport, Failures(server, config.api)))
    return tuple(found)
