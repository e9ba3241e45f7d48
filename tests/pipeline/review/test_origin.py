"""The embedded server answers its own origin only."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefloop.pipeline.review.server.argilla_lite.origin import OwnOrigin


async def _inner(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(headers: dict[str, str], host: str = "127.0.0.1") -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw}
    asyncio.run(OwnOrigin(_inner, host)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", ["127.0.0.1:6900", "localhost:6900", "[::1]:6900", "LOCALHOST"])
def test_its_own_names_are_answered(host: str) -> None:
    assert status({"host": host}) == 200
    assert status({"host": host, "origin": f"http://{host}"}) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"host": "evil.example:6900"}, {"host": "127.0.0.1.evil.example"}, {"host": ""},
        {"host": "localhost:6900", "origin": "http://evil.example"},
        {"host": "localhost:6900", "origin": "null"}, {"host": "[::1"},
        {"host": "localhost:6900", "origin": "http://localhost:8000"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_others_are_not(headers: dict[str, str], listening: str) -> None:
    assert status(headers, listening) == 403
